"""Sums of gradients by class and kind of region: against loops, for all losses and add-ons."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from lt_detectron2.losses import (
    EqualizationLossV2,
    GAPLoss,
    GroupSoftmaxLoss,
    HarmonicCoupling,
    SeesawLoss,
    SoftmaxCrossEntropyLoss,
)
from lt_detectron2.modeling.box_predictor import LongTailFastRCNNOutputLayers
from lt_detectron2.modeling.gradient_sums import GradientSums
from lt_detectron2.statistics import ClassStatistics

from .test_coupling import FEATURES, TRANSFORM, sampled_image

K = 3
STATISTICS = ClassStatistics([3, 50, 2000], [2, 40, 500], 1000)
LOSSES = {
    "softmax": lambda: SoftmaxCrossEntropyLoss(K),
    "eqlv2": lambda: EqualizationLossV2(K),
    "eqlv2_2c": lambda: EqualizationLossV2(K, formulation="softmax_2c"),
    "seesaw": lambda: SeesawLoss(K),
    "bags": lambda: GroupSoftmaxLoss(K, STATISTICS),
}


def slow_sums(gradient, targets):
    sums = torch.zeros(3, K, dtype=torch.float64)
    for row, target in zip(gradient.tolist(), targets.tolist()):
        for c in range(K):
            kind = 0 if target == c else 2 if target == K else 1
            sums[kind, c] += abs(row[c])
    return sums


@pytest.mark.parametrize("name", LOSSES)
def test_counts_what_trains(name):
    loss = LOSSES[name]()
    loss.uniform = lambda shape: torch.full(shape, 0.5)
    targets = torch.tensor([0, 1, 1, 2, 3, 3, 3])
    logits = torch.randn(len(targets), loss.num_logits, requires_grad=True)
    (plain,) = torch.autograd.grad(loss.eval()(logits, targets), logits)

    sums = GradientSums(K)
    hidden = logits * 1  # not a leaf, as in a network
    sums.watch(hidden, targets, loss.class_logits)
    (gradient,) = torch.autograd.grad(loss(hidden, targets), logits)
    assert_close(gradient, plain)  # it only looks
    assert_close(sums.sums, slow_sums(loss.class_logits(plain), targets), rtol=1e-5, atol=1e-9)


def test_equals_what_eql_v2_accumulates():
    loss, sums = EqualizationLossV2(K).train(), GradientSums(K)
    for _ in range(3):
        targets = torch.randint(0, K + 1, (20,))
        logits = torch.randn(20, loss.num_logits, requires_grad=True)
        sums.watch(logits, targets, loss.class_logits)
        loss(logits, targets).backward()
    assert_close(20 * sums.sums[0], loss.positive_gradient, rtol=1e-5, atol=1e-7)
    assert_close(20 * sums.sums[1:].sum(dim=0), loss.negative_gradient, rtol=1e-5, atol=1e-7)


def test_sums_over_steps_until_taken():
    sums = GradientSums(K)
    assert_close(sums.take(torch.device("cpu")), torch.zeros(3, K, dtype=torch.float64))
    gradient, targets = torch.randn(5, K), torch.tensor([0, 1, 2, 3, 3])
    for _ in range(2):
        sums._add(gradient, targets)
    sums._add(torch.zeros(0, K), torch.zeros(0, dtype=torch.int64))
    expected = 2 * slow_sums(gradient, targets)
    assert_close(sums.take(torch.device("cpu")), expected, rtol=1e-6, atol=1e-9)
    assert not sums.take(torch.device("cpu")).any()


def test_scaled_losses_and_overflow():
    gradient, targets = torch.randn(5, K), torch.tensor([0, 1, 2, 3, 3])
    sums = GradientSums(K)
    sums.scale_loss = lambda loss: 1024 * loss
    sums._add(1024 * gradient.half().float(), targets)
    sums._add(torch.full_like(gradient, torch.inf), targets)  # a step that the scaler skips
    assert_close(sums.sums, slow_sums(gradient.half(), targets), rtol=1e-5, atol=1e-9)


def test_frozen_logits_are_left_alone():
    sums = GradientSums(K)
    sums.watch(torch.randn(2, K), torch.tensor([0, 3]), lambda logits: logits)
    assert sums.sums is None


@pytest.mark.parametrize("add_on", ["none", "harmonic", "ranking"])
def test_box_predictor_with_add_ons(add_on):
    """The gradient of all that is trained through the logits, weights included."""
    layers = LongTailFastRCNNOutputLayers(
        FEATURES,
        box2box_transform=TRANSFORM,
        num_classes=K,
        classification_loss=SoftmaxCrossEntropyLoss(K),
        harmonic=HarmonicCoupling() if add_on == "harmonic" else None,
        ranking_loss=GAPLoss(K, gamma=0.0) if add_on == "ranking" else None,
        loss_weight={"loss_cls": 0.5},
    ).train()
    image = sampled_image()
    features = torch.randn(len(image), FEATURES)
    with EventStorage():
        predictions = layers(features)
        for prediction in predictions:
            prediction.retain_grad()
        layers.gradient_sums = GradientSums(K)
        sum(layers.losses(predictions, [image]).values()).backward()
    expected = slow_sums(predictions[0].grad, image.gt_classes)
    assert_close(layers.gradient_sums.sums, expected, rtol=1e-5, atol=1e-8)


def test_images_without_regions():
    layers = LongTailFastRCNNOutputLayers(
        FEATURES,
        box2box_transform=TRANSFORM,
        num_classes=K,
        classification_loss=SoftmaxCrossEntropyLoss(K),
    ).train()
    layers.gradient_sums = GradientSums(K)
    image = Instances((50, 50))
    image.proposal_boxes = image.gt_boxes = Boxes(torch.zeros(0, 4))
    image.gt_classes = torch.zeros(0, dtype=torch.int64)
    with EventStorage():
        losses = layers.losses(layers(torch.zeros(0, FEATURES)), [image])
        sum(losses.values()).backward()
    assert not layers.gradient_sums.take(torch.device("cpu")).any()
