"""LOCE's feature memory: what is kept, what is drawn, and how it joins the regions of a step."""

from collections import defaultdict, deque

import pytest
import torch
from detectron2.utils.events import EventStorage

from lt_detectron2.errors import ConfigError
from lt_detectron2.modeling.freeze import train_only
from lt_detectron2.modeling.loce import FeatureMemory, RememberedRegions
from tests.synchronisation import NoSynchronisation

from .detectors import NUM_CLASSES, batch, small_config, small_detector

BITMASK = ("INPUT.MASK_FORMAT", "bitmask")
TRAINABLE = ["classifier", "*.bbox_pred", "proposal_generator"]


def regions(classes, first=0):
    """Regions numbered from ``first``; their features and boxes are their numbers."""
    numbers = torch.arange(first, first + len(classes), dtype=torch.float32)
    boxes = numbers[:, None].expand(-1, 4)
    return RememberedRegions(boxes[:, :2], boxes, boxes + 0.5, torch.tensor(classes))


def detector(tmp_path, *overrides, loss="EquilibriumLoss"):
    cfg = small_config(tmp_path, "LOCEROIHeads", loss, *BITMASK, *overrides)
    return small_detector(cfg)


def test_keeps_the_latest_of_each_class():
    memory = FeatureMemory(4, 2, capacity=3)
    expected = defaultdict(lambda: deque(maxlen=3))
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        count = int(torch.randint(0, 9, (), generator=generator))  # more than fit, and none
        classes = torch.randint(0, 3, (count,), generator=generator).tolist()
        new = regions(classes, first=100 * step)
        memory.add(new)
        for c, number in zip(classes, new.features[:, 0].tolist()):
            expected[c].append(number)
        for c in range(4):
            filled = min(int(memory.seen[c]), 3)
            assert sorted(memory.features[c, :filled, 0].tolist()) == sorted(expected[c])
            assert torch.equal(memory.boxes[c, :filled, 3], memory.features[c, :filled, 0])
            assert torch.equal(memory.gt_boxes[c, :filled, 0], memory.boxes[c, :filled, 0] + 0.5)
    assert int(memory.seen[:3].min()) > 3 and int(memory.seen[3]) == 0


def test_weak_classes_are_drawn_more_often():
    memory = FeatureMemory(4, 2, capacity=5, classes_per_step=1000, features_per_class=2)
    memory.add(regions([0] * 9 + [1] * 2 + [3]))
    drawn = memory.draw(torch.tensor([0.5, 0.25, 0.001, 0.1]))
    assert drawn.features.shape == (2000, 2)
    share = torch.bincount(drawn.classes, minlength=4) / 2000
    weights = torch.tensor([2.0, 4.0, 0.0, 10.0])  # nothing is known of class 2
    torch.testing.assert_close(share, weights / weights.sum(), atol=0.05, rtol=0)
    assert torch.equal(drawn.classes[::2], drawn.classes[1::2])  # features of a class together
    of_class = {c: set(drawn.features[drawn.classes == c, 0].tolist()) for c in (0, 1, 3)}
    assert of_class == {0: {4, 5, 6, 7, 8}, 1: {9, 10}, 3: {11}}
    assert torch.equal(drawn.boxes[:, 0], drawn.features[:, 0])


def test_drawing_never_waits_for_the_device():
    memory = FeatureMemory(4, 2)
    memory.add(regions([0, 3]))
    scores = torch.full((4,), 0.01)
    memory.draw(scores)  # the first time it asks whether there is anything
    with NoSynchronisation():
        memory.draw(scores)


def test_a_class_that_never_scores_is_drawn():
    memory = FeatureMemory(4, 2)
    memory.add(regions([0, 3]))
    drawn = memory.draw(torch.tensor([0.5, 0.5, 0.5, 0.0]))
    assert (drawn.classes == 3).all()


def test_nothing_is_drawn_from_an_empty_memory():
    drawn = FeatureMemory(4, 2).draw(torch.full((4,), 0.01))
    assert drawn.features.shape == (0, 2) and drawn.classes.dtype == torch.int64


def test_corners_move_by_at_most_the_jitter():
    memory = FeatureMemory(2, 2, copies=500, jitter=1 / 6)
    boxes = torch.tensor([[10.0, 20.0, 40.0, 32.0], [0.0, 0.0, 6.0, 60.0]])
    moved = memory.jittered(boxes).view(2, 500, 4) - boxes[:, None]
    furthest = moved.abs().amax(dim=1)
    limit = torch.tensor([[5.0, 2.0, 5.0, 2.0], [1.0, 10.0, 1.0, 10.0]])
    assert (furthest <= limit).all() and (furthest > 0.95 * limit).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"capacity": 0}, "must be at least 1, got .0, 16, 8, 4."),
        ({"jitter": 0.5}, "jitter must be below 0.5"),
        ({"jitter": -0.1}, "jitter must be a finite number >= 0"),
    ],
)
def test_hyper_parameters_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureMemory(4, 2, **arguments)


def test_remembered_regions_join_a_step(tmp_path, monkeypatch):
    model = detector(tmp_path)
    train_only(model, TRAINABLE)
    model.train()
    loss = model.roi_heads.box_predictor.classification_loss
    told = {}

    def observe(logits, targets, reduction, object_ids=None):
        told.update(targets=targets, ids=object_ids)
        return type(loss).region_losses(loss, logits, targets, reduction, object_ids)

    monkeypatch.setattr(loss, "region_losses", observe)
    images = batch(objects=(3, 2))
    classes = torch.cat([image["instances"].gt_classes for image in images])
    with EventStorage():
        losses = model(images)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    targets, ids = told["targets"], told["ids"]
    sampled, drawn = slice(0, -32), slice(-32, None)  # 8 classes, 4 features each
    foreground = targets[sampled] < NUM_CLASSES
    assert foreground.any() and torch.equal(
        classes[ids[sampled][foreground]], targets[sampled][foreground]
    )
    assert torch.equal(ids[drawn], -1 - targets[drawn])
    assert set(targets[drawn].tolist()) <= set(classes.tolist())
    seen = model.roi_heads.feature_memory.seen
    assert torch.equal(seen, 16 * torch.bincount(classes, minlength=NUM_CLASSES))
    assert (loss.mean_score[:-1] != 0.01).sum() == len(classes.unique())

    with EventStorage():  # no object at all
        losses = model(batch(objects=(0, 0)))
    assert all(torch.isfinite(value) for value in losses.values())
    assert torch.equal(told["ids"][-32:], -1 - told["targets"][-32:])


def test_features_are_those_of_the_regions(tmp_path):
    model = detector(tmp_path, "LONG_TAIL.FEATURE_MEMORY.JITTER", "0.0").eval()
    images = batch(objects=(2, 1))
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(images).tensor)
        targets = [image["instances"] for image in images]
        model.roi_heads.remember(features, targets)
        boxes = [image.gt_boxes for image in targets]
        expected = model.roi_heads.run_box_stage(features, boxes, 0).features
    memory = model.roi_heads.feature_memory
    for number, c in enumerate(torch.cat([image.gt_classes for image in targets]).tolist()):
        filled = memory.features[c, : int(memory.seen[c])]
        assert any(torch.allclose(feature, expected[number], atol=1e-6) for feature in filled)


def test_the_first_pass_fills_every_class(tmp_path):
    model = detector(tmp_path, "LONG_TAIL.FEATURE_MEMORY.CAPACITY", "32")
    train_only(model, TRAINABLE)
    batches = [batch(seed) for seed in range(12)]
    counts = sum(
        torch.bincount(image["instances"].gt_classes, minlength=NUM_CLASSES)
        for images in batches
        for image in images
    )
    model.roi_heads.fill_memory(model.eval(), batches)
    seen = model.roi_heads.feature_memory.seen
    assert torch.equal(seen > 0, counts > 0)
    # Two objects fill a memory; those of one batch are taken together.
    assert ((seen >= (16 * counts).clamp(max=32)) & (seen <= 16 * counts)).all()
    assert (seen < 16 * counts).any()
    assert "roi_heads.feature_memory.features" in model.state_dict()


def test_evaluation_remembers_nothing(tmp_path):
    model = detector(tmp_path).eval()
    with torch.no_grad():
        assert len(model(batch())[0]["instances"])
    assert not model.roi_heads.feature_memory.seen.any()


def test_refused(tmp_path):
    with pytest.raises(ConfigError, match="LONG_TAIL.LOSS.NAME is 'SeesawLoss': use Equilibrium"):
        detector(tmp_path, loss="SeesawLoss")
    with pytest.raises(ConfigError, match="TRAIN_ON_PRED_BOXES has no meaning"):
        detector(tmp_path, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "True")
    with pytest.raises(ConfigError, match="LONG_TAIL.FEATURE_MEMORY: capacity"):
        detector(tmp_path, "LONG_TAIL.FEATURE_MEMORY.COPIES", "0")
    model = detector(tmp_path)
    train_only(model, ["box_head"])
    with pytest.raises(ConfigError, match="leave roi_heads.box_head and backbone out"):
        model.roi_heads.fill_memory(model, [])
