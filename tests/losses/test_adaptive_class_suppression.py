"""ACSL: which terms count, and how many background regions suppress each group."""

import math

import pytest
import torch
from torch.testing import assert_close

from lt_detectron2.losses import AdaptiveClassSuppressionLoss, SigmoidCrossEntropyLoss
from lt_detectron2.statistics import ClassStatistics

from .factory import BATCH_KINDS, STATISTICS, K, batch, dense_weights

THREE_GROUPS = ClassStatistics([5, 50, 500], [5, 50, 500], 1000)  # one class of each


def test_value_by_hand():
    # Region 0 is of class 0: its own term and that of class 1, whose score 3/4 reaches 0.7; not
    # those of class 2 and of the background, with 1/2. Region 1 is background: its own column and
    # the frequent class; a hundredth and a tenth of one region are none.
    loss = AdaptiveClassSuppressionLoss(3, THREE_GROUPS)
    logits = torch.zeros(2, 4)
    logits[0, 1] = math.log(3)
    value = loss(logits, torch.tensor([0, 3]))
    assert_close(value.item(), (math.log(2) + math.log(4) + 2 * math.log(2)) / 2)


def test_neutral_parameters_are_sigmoid_cross_entropy():
    loss = AdaptiveClassSuppressionLoss(
        K, STATISTICS, score_threshold=0.0, background_ratios=(1, 1, 1)
    )
    logits, targets = batch(loss)
    plain = SigmoidCrossEntropyLoss(K + 1)(logits, targets)  # the background is class K
    assert_close(loss(logits, targets), plain)


@pytest.mark.parametrize("kind", BATCH_KINDS)
def test_equals_slow_reference(kind: str):
    ratios = (0.1, 0.3, 0.7)
    loss = AdaptiveClassSuppressionLoss(
        K, STATISTICS, score_threshold=0.6, background_ratios=ratios
    )
    draws = torch.rand(40, 3)
    loss.uniform = lambda shape: draws
    logits, targets = batch(loss, regions=40, kind=kind)
    background = [i for i, t in enumerate(targets.tolist()) if t == K]
    chosen = []
    for group, ratio in enumerate(ratios):
        in_order = sorted(background, key=lambda i: draws[i, group])
        chosen.append(in_order[: int(len(background) * ratio)])
    total = 0.0
    for i, t in enumerate(targets.tolist()):
        for j in range(K + 1):
            p = logits[i, j].sigmoid().item()
            if j == t:
                total -= math.log(p)
            elif t == K and i in chosen[int(STATISTICS.frequency_group()[j])]:
                total -= math.log(1 - p)
            elif t != K and p >= 0.6:
                total -= math.log(1 - p)
    assert_close(loss(logits, targets).item(), total / len(targets))


def test_shares_of_the_background():
    loss = AdaptiveClassSuppressionLoss(3, THREE_GROUPS)
    logits = torch.zeros(512, 4)
    targets = torch.full((512,), 3)
    targets[::4] = 0
    weights = dense_weights(loss, logits, targets)[targets == 3]
    # 384 background regions: int(3.84), int(38.4) and all.
    assert weights.sum(dim=0).tolist() == [3, 38, 384, 384]


def test_every_background_region_is_equally_likely():
    loss = AdaptiveClassSuppressionLoss(3, THREE_GROUPS, background_ratios=(0.2, 0.5, 1.0))
    logits, targets = torch.zeros(12, 4), torch.tensor([0, 3, 3, 3, 3, 3, 1, 3, 3, 3, 3, 3])
    counts = sum(dense_weights(loss, logits, targets) for _ in range(2000)) / 2000
    background = counts[targets == 3]
    expected = torch.tensor([0.2, 0.5, 1.0, 1.0]).expand_as(background)
    assert_close(background, expected, atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold must lie in 0..1, got 1.5"),
        ({"background_ratios": (0.1, 1.0)}, r"three shares in 0..1 \(rare, common, frequent\)"),
        ({"background_ratios": (0.1, 1.0, 2.0)}, "background_ratios must be three shares"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        AdaptiveClassSuppressionLoss(K, STATISTICS, **arguments)
