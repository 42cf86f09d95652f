"""Harmonic coupling inside the box predictor and RetinaNet, against slow references."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from lt_detectron2.engine.setup import load_config
from lt_detectron2.losses import (
    EqualizationLossV2,
    EquilibriumLoss,
    HarmonicCoupling,
    SeesawLoss,
    SigmoidCrossEntropyLoss,
    SoftmaxCrossEntropyLoss,
)
from lt_detectron2.modeling.box_predictor import OBJECT_IDS, LongTailFastRCNNOutputLayers

from .detectors import NUM_CLASSES, batch, small_detector

K = 3
FEATURES = 8
TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
LOSSES = {
    "softmax": SoftmaxCrossEntropyLoss,
    "sigmoid": SigmoidCrossEntropyLoss,
    "seesaw": SeesawLoss,
    "eqlv2": EqualizationLossV2,
}


def predictor(loss_class, harmonic, **kwargs):
    return LongTailFastRCNNOutputLayers(
        FEATURES,
        box2box_transform=TRANSFORM,
        num_classes=K,
        classification_loss=loss_class(K),
        harmonic=harmonic,
        **kwargs,
    )


def sampled_image(num_regions=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = 60 * torch.rand(num_regions, 2, generator=generator)
    sizes = 10 + 30 * torch.rand(num_regions, 2, generator=generator)
    image = Instances((120, 120))
    image.proposal_boxes = Boxes(torch.cat([corners, corners + sizes], 1))
    shifts = 4 * torch.rand(num_regions, 4, generator=generator)
    image.gt_boxes = Boxes(image.proposal_boxes.tensor + shifts)
    image.gt_classes = torch.arange(num_regions) % (K + 1)
    return image


def losses_of(layers, image):
    layers.train()
    features = torch.randn(len(image), FEATURES, generator=torch.Generator().manual_seed(1))
    predictions = layers(features)
    for prediction in predictions:
        prediction.retain_grad()
    with EventStorage(19) as storage:  # an iteration that is logged
        return predictions, layers.losses(predictions, [image]), storage.latest()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("box_type", ["smooth_l1", "giou", "smooth_l1+hiou"])
def test_predictor_equals_slow_reference(name, detach, box_type):
    torch.manual_seed(0)
    weight = {"loss_box_reg": 2.0}
    coupling = HarmonicCoupling(detach=detach)
    layers = predictor(LOSSES[name], coupling, box_reg_loss_type=box_type, loss_weight=weight)
    image = sampled_image()
    (logits, deltas), losses, _ = losses_of(layers, image)
    sum(losses.values()).backward()

    fresh = LOSSES[name](K).train()  # Seesaw counts: the reference must start where it did
    z, d = logits.detach().requires_grad_(), deltas.detach().requires_grad_()
    class_terms = fresh.region_losses(z, image.gt_classes)
    class_total, box_total = 0.0, 0.0
    for i, target in enumerate(image.gt_classes.tolist()):
        if target == K:
            class_total = class_total + class_terms[i]
            continue
        box = layers.box_loss(
            d[i, 4 * target : 4 * target + 4][None],
            image.proposal_boxes.tensor[i, None],
            image.gt_boxes.tensor[i, None],
        )[0]
        beta_r, beta_c = torch.exp(-box), fresh.scores(z[i, None])[0, target]
        if detach:
            beta_r, beta_c = beta_r.detach(), beta_c.detach()
        class_total = class_total + (1 + beta_r) * class_terms[i]
        box_total = box_total + (1 + beta_c) * box
    assert_close(losses["loss_cls"], class_total / len(image))
    assert_close(losses["loss_box_reg"], 2 * box_total / len(image))
    ((class_total + 2 * box_total) / len(image)).backward()
    assert_close(logits.grad, z.grad)
    assert_close(deltas.grad, d.grad)


def test_the_loss_is_told_of_objects_as_without_coupling():
    image = sampled_image()
    image.set(OBJECT_IDS, torch.arange(len(image)) % 2 * 10 + image.gt_classes)
    mean_scores = []
    for harmonic in (None, HarmonicCoupling()):
        torch.manual_seed(0)
        layers = predictor(EquilibriumLoss, harmonic)
        losses_of(layers, image)
        mean_scores.append(layers.classification_loss.mean_score)
    assert torch.equal(*mean_scores)


def test_task_contrast_is_added():
    layers = predictor(SoftmaxCrossEntropyLoss, HarmonicCoupling(task_contrast=True, margin=0.1))
    image = sampled_image()
    (logits, deltas), losses, _ = losses_of(layers, image)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_contrast"}
    total = 0.0
    for i, target in enumerate(image.gt_classes.tolist()):
        if target == K:
            continue
        score = logits[i].softmax(0)
        own = deltas[i, 4 * target : 4 * target + 4][None]
        box = TRANSFORM.apply_deltas(own, image.proposal_boxes.tensor[i, None]).detach()
        iou = pairwise_iou(Boxes(box), image.gt_boxes[i])[0, 0]
        entropy = -(score * score.log()).sum()
        total += ((score[target] - iou).abs() - 0.1).clamp(min=0) / (1 + entropy.exp())
    assert total > 0
    assert_close(losses["loss_contrast"], total / len(image))
    losses["loss_contrast"].backward()
    assert logits.grad.any() and deltas.grad.any()


def test_reversed_gradients_are_logged():
    """At the start of a softmax over few classes boxes are far and no class is certain."""
    torch.manual_seed(0)
    image = sampled_image()
    layers = predictor(SoftmaxCrossEntropyLoss, HarmonicCoupling())
    with torch.no_grad():
        layers.cls_score.bias[K] = 9.0  # everything is background: C is about 9
        layers.bbox_pred.weight.zero_()
    image.gt_boxes = image.proposal_boxes  # and every box is perfect: L = 0
    (_, _), _, logged = losses_of(layers, image)
    assert logged["harmonic/reversed_box"][0] == 1.0
    assert logged["harmonic/reversed_class"][0] == 0.0
    layers.loss_weight = {"loss_box_reg": 20.0}  # outweighs C
    (_, _), _, logged = losses_of(layers, image)
    assert logged["harmonic/reversed_box"][0] == 0.0
    layers.harmonic = HarmonicCoupling(detach=True)
    (_, _), _, logged = losses_of(layers, image)
    assert "harmonic/reversed_box" not in logged


@pytest.mark.parametrize("with_contrast", [False, True])
def test_no_foreground_and_no_region(with_contrast):
    layers = predictor(SoftmaxCrossEntropyLoss, HarmonicCoupling(task_contrast=with_contrast))
    image = sampled_image()
    image.gt_classes = torch.full_like(image.gt_classes, K)
    for images in ([image], [image[:0]], []):
        count = sum(len(each) for each in images)
        with EventStorage():
            losses = layers.losses(layers(torch.randn(count, FEATURES)), images)
        sum(losses.values()).backward()
        assert losses["loss_box_reg"] == 0 and (losses["loss_cls"] > 0) == (count > 0)
        assert layers.bbox_pred.weight.grad is not None


def test_half_precision_under_autocast():
    layers = predictor(SoftmaxCrossEntropyLoss, HarmonicCoupling())
    image = sampled_image()
    features = torch.randn(len(image), FEATURES)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = layers(features)
        losses = layers.losses(predictions, [image])
    assert predictions[0].dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()


# ---- RetinaNet


def retinanet_config(architecture, *overrides):
    return load_config(
        "configs/SynthLT/Base-smoke.yaml",
        ["MODEL.META_ARCHITECTURE", architecture, "MODEL.MASK_ON", "False"]
        + ["MODEL.RETINANET.NUM_CLASSES", str(NUM_CLASSES), "MODEL.DEVICE", "cpu"]
        + ["MODEL.RETINANET.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']", "DATASETS.TRAIN", "()"]
        + ["MODEL.RETINANET.NUM_CONVS", "1", *overrides],
    )


def dense_losses(model, images):
    model.train()
    with EventStorage():
        return model(images)


@pytest.mark.parametrize("box_type", ["smooth_l1", "giou"])
def test_retinanet_without_coupling_equals_detectron2(box_type):
    key = ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", box_type)
    ours = small_detector(retinanet_config("LongTailRetinaNet", *key))
    stock = small_detector(retinanet_config("RetinaNet", *key))
    assert list(ours.state_dict()) == list(stock.state_dict())
    actual, expected = dense_losses(ours, batch()), dense_losses(stock, batch())
    assert {name: loss.item() for name, loss in actual.items()} == {
        name: loss.item() for name, loss in expected.items()
    }


@pytest.mark.parametrize("detach", ["False", "True"])
def test_retinanet_coupling_equals_slow_reference(detach):
    model = small_detector(
        retinanet_config(
            "LongTailRetinaNet",
            *("LONG_TAIL.HARMONIC.ENABLED", "True", "LONG_TAIL.HARMONIC.DETACH", detach),
            *("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1+hiou"),
        )
    )
    anchors = [Boxes(torch.tensor([[0.0, 0, 9, 9], [4, 4, 20, 16]])), Boxes(torch.ones(1, 4))]
    anchors[1].tensor[:, 2:] = 30.0
    logits = [torch.randn(2, 2, NUM_CLASSES), torch.randn(2, 1, NUM_CLASSES)]
    deltas = [torch.randn(2, 2, 4), torch.randn(2, 1, 4)]
    for tensor in (*logits, *deltas):
        tensor.requires_grad_()
    labels = [torch.tensor([2, NUM_CLASSES, 0]), torch.tensor([-1, 6, NUM_CLASSES])]
    objects = [torch.rand(3, 4) * 8 + torch.tensor([0, 0, 12, 12]) for _ in range(2)]
    with EventStorage():
        losses = model.losses(anchors, logits, labels, deltas, objects)
    normalizer = model.loss_normalizer
    gradients = torch.autograd.grad(sum(losses.values()), [*logits, *deltas])

    all_anchors = torch.cat([level.tensor for level in anchors])
    class_total, box_total = 0.0, 0.0
    for image in range(2):
        for r, label in enumerate(labels[image].tolist()):
            if label == -1:
                continue
            z = torch.cat(logits, dim=1)[image, r]
            focal = 0.0
            for j in range(NUM_CLASSES):
                p = z[j].sigmoid() if j == label else 1 - z[j].sigmoid()
                alpha = 0.25 if j == label else 0.75
                focal = focal - alpha * (1 - p) ** 2 * p.log()
            if label == NUM_CLASSES:
                class_total = class_total + focal
                continue
            box = model.box_loss(
                torch.cat(deltas, dim=1)[image, r, None],
                all_anchors[r, None],
                objects[image][r, None],
            )[0]
            beta_r, beta_c = torch.exp(-box), z[label].sigmoid()
            if detach == "True":
                beta_r, beta_c = beta_r.detach(), beta_c.detach()
            class_total = class_total + (1 + beta_r) * focal
            box_total = box_total + (1 + beta_c) * box
    assert_close(losses["loss_cls"], class_total / normalizer)
    assert_close(losses["loss_box_reg"], box_total / normalizer)
    expected = torch.autograd.grad((class_total + box_total) / normalizer, [*logits, *deltas])
    for actual_gradient, expected_gradient in zip(gradients, expected):
        assert_close(actual_gradient, expected_gradient)


@pytest.mark.parametrize("harmonic", ["False", "True"])
def test_retinanet_trains_and_detects(harmonic):
    model = small_detector(
        retinanet_config(
            "LongTailRetinaNet",
            *("LONG_TAIL.HARMONIC.ENABLED", harmonic),
            *("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "hiou"),
        )
    )
    for objects in ((2, 3), (0, 0)):
        losses = dense_losses(model, batch(objects=objects))
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
    model.eval()
    with torch.no_grad():
        assert "instances" in model(batch())[0]
