"""One predictor and two heads for every loss; with softmax they equal Detectron2's."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from lt_detectron2.modeling.classification_loss import loss_classes

from .detectors import NUM_CLASSES, batch, small_config, small_detector

HEADS = {"LongTailROIHeads": "StandardROIHeads", "LongTailCascadeROIHeads": "CascadeROIHeads"}
BITMASK = ("INPUT.MASK_FORMAT", "bitmask")


def training_losses(model, images, seed=0):
    model.train()
    torch.manual_seed(seed)  # proposals are sampled
    with EventStorage():
        return model(images)


@pytest.mark.parametrize(
    "heads, agnostic",
    [
        ("LongTailROIHeads", "True"),
        ("LongTailROIHeads", "False"),
        ("LongTailCascadeROIHeads", "True"),  # Detectron2's cascade knows no other
    ],
)
def test_softmax_equals_detectron2(tmp_path, heads, agnostic):
    overrides = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic, *BITMASK)
    loss = "SoftmaxCrossEntropyLoss"
    ours = small_detector(small_config(tmp_path, heads, loss, *overrides))
    stock = small_detector(small_config(tmp_path, HEADS[heads], loss, *overrides))
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict())

    images = batch()
    actual, expected = training_losses(ours, images), training_losses(stock, images)
    assert list(actual) == list(expected)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    sum(actual.values()).backward()
    sum(expected.values()).backward()
    stock_parameters = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, stock_parameters[name].grad), name

    ours.eval(), stock.eval()
    with torch.no_grad():
        for ours_image, stock_image in zip(ours(images), stock(images)):
            actual, expected = ours_image["instances"], stock_image["instances"]
            assert len(actual) > 0
            assert torch.equal(actual.scores, expected.scores)
            assert torch.equal(actual.pred_classes, expected.pred_classes)
            assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(actual.pred_masks, expected.pred_masks)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("loss", sorted(loss_classes()))
def test_every_loss_trains_and_detects(tmp_path, heads, loss):
    model = small_detector(small_config(tmp_path, heads, loss, *BITMASK))
    predictors = model.roi_heads.box_predictor
    first = predictors[0] if "Cascade" in heads else predictors
    assert first.cls_score.out_features == first.classification_loss.num_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = first.cls_score.weight.detach().clone()
    for step in range(2):
        losses = training_losses(model, batch(step), seed=step)
        assert all(torch.isfinite(value) for value in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert not torch.equal(first.cls_score.weight, before)
    model.eval()
    with torch.no_grad():
        found = model(batch())[0]["instances"]
    assert len(found) and ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.pred_classes >= 0) & (found.pred_classes < NUM_CLASSES)).all()


def test_cascade_stages_have_their_own_state(tmp_path):
    cfg = small_config(tmp_path, "LongTailCascadeROIHeads", "EqualizationLossV2", *BITMASK)
    model = small_detector(cfg)
    training_losses(model, batch())
    losses = [predictor.classification_loss for predictor in model.roi_heads.box_predictor]
    assert len(losses) == 3 and len({id(loss) for loss in losses}) == 3
    assert not torch.equal(losses[0].negative_gradient, losses[1].negative_gradient)


@pytest.mark.parametrize("heads", HEADS)
def test_images_without_objects(tmp_path, heads):
    model = small_detector(small_config(tmp_path, heads, "EqualizationLossV2", *BITMASK))
    for objects in ((0, 2), (0, 0)):
        losses = training_losses(model, batch(objects=objects))
        sum(losses.values()).backward()
        assert all(torch.isfinite(value) for value in losses.values())


def test_no_region_at_all(tmp_path):
    model = small_detector(small_config(tmp_path, "LongTailROIHeads", "SeesawLoss", *BITMASK))
    predictor = model.roi_heads.box_predictor
    features = torch.zeros(0, predictor.cls_score.in_features)
    model.train()
    with EventStorage():
        losses = predictor.losses(predictor(features), [])
    assert {name: value.item() for name, value in losses.items()} == {
        "loss_cls": 0.0,
        "loss_box_reg": 0.0,
    }
    sum(losses.values()).backward()


@pytest.mark.parametrize("loss", ["DropLoss", "SoftmaxCrossEntropyLoss"])
def test_only_losses_with_a_background_log_how_often_it_is_right(tmp_path, loss):
    predictor = small_detector(
        small_config(tmp_path, "LongTailROIHeads", loss, *BITMASK)
    ).roi_heads.box_predictor
    # One object, found, and three regions of background that score nothing.
    scores = torch.full((4, predictor.num_classes + 1), 1e-4)
    scores[0, 2] = 1.0
    scores[1:, -1] = 0.0 if loss == "DropLoss" else 1.0
    targets = torch.tensor([2] + 3 * [predictor.num_classes])
    with EventStorage(19) as storage:  # an iteration that is logged
        predictor.monitor.update(lambda scores: scores, scores, targets)
    names = ("fg_cls_accuracy", "cls_accuracy", "false_negative")
    logged = [storage.latest().get(f"fast_rcnn/{name}", (None,))[0] for name in names]
    assert logged == ([1.0, None, None] if loss == "DropLoss" else [1.0, 1.0, 0.0])


def test_accuracy_and_state_are_logged_by_group(tmp_path):
    model = small_detector(
        small_config(tmp_path, "LongTailROIHeads", "EqualizationLossV2", *BITMASK)
    )
    model.train()
    with EventStorage() as storage:
        for _ in range(20):
            model(batch())
            storage.step()
        logged = storage.latest()
    assert 0 <= logged["fast_rcnn/fg_cls_accuracy_frequent"][0] <= 1
    assert "fast_rcnn/cls_accuracy" in logged and "fast_rcnn/false_negative" in logged
    assert {
        f"loss_state/gradient_ratio_{group}" for group in ("rare", "common", "frequent")
    } <= set(logged)
