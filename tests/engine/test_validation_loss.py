"""The validation loss: the mean over images, and no trace of it in the training."""

import copy
from contextlib import contextmanager

import pytest
import torch
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from lt_detectron2.engine import validation_loss
from lt_detectron2.engine.stop import StopRequested
from lt_detectron2.engine.validation_loss import (
    ValidationLoss,
    computing_losses,
    validation_losses,
)
from lt_detectron2.errors import DatasetError, NonFiniteLossError, UserError
from lt_detectron2.random_state import random_state
from tests.modeling.detectors import batch, small_config, small_detector

from .small_set import register, unregister

DATASET = "validation_loss_val"


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    register(DATASET, folder)
    yield folder
    unregister(DATASET)


def detector(folder, heads="LongTailROIHeads", loss="EqualizationLossV2", *overrides):
    keys = ["DATASETS.TEST", f"('{DATASET}',)", "INPUT.FORMAT", "BGR", *overrides]
    cfg = small_config(folder, heads, loss, *keys)
    return cfg, small_detector(cfg)


def everything(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    return state, [module.training for module in model.modules()]


def assert_same(actual, expected):
    assert actual[1] == expected[1]
    for name, value in expected[0].items():
        assert torch.equal(actual[0][name], value), name


def numbers_of(state):
    return [state["torch"].tolist(), state["python"][1].tolist(), state["numpy"][1].tolist()]


def test_mean_over_images(tmp_path):
    # With so few regions none is left out, so that nothing is drawn.
    few = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"]
    few += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "4096"]
    cfg, model = detector(tmp_path, "LongTailROIHeads", "SeesawLoss", *few)
    actual = validation_losses(cfg, model)

    mapper = DatasetMapper(
        is_train=True,
        augmentations=build_augmentation(cfg, is_train=False),
        image_format="BGR",
        use_instance_mask=True,
    )
    losses = []
    for record in get_detection_dataset_dicts([DATASET], filter_empty=False):
        reference = copy.deepcopy(model).eval()
        heads = reference.roi_heads
        for part in (reference, reference.proposal_generator, heads, heads.mask_head):
            part.training = True  # of that part alone: it computes its losses
        with EventStorage(), torch.no_grad():
            losses.append(reference([mapper(record)]))
    assert len(losses) == 8 and set(actual) == set(losses[0])
    for name, value in actual.items():
        expected = sum(float(part[name]) for part in losses) / len(losses)
        assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "heads, loss",
    [
        ("LongTailROIHeads", "EqualizationLossV2"),
        ("LongTailCascadeROIHeads", "SeesawLoss"),
        ("LongTailROIHeads", "EquilibriumLoss"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_no_trace(tmp_path, heads, loss, training):
    cfg, model = detector(tmp_path, heads, loss)
    model.train(training)
    before, random_before = everything(model), numbers_of(random_state())
    first = validation_losses(cfg, model)
    assert_same(everything(model), before)
    assert numbers_of(random_state()) == random_before
    torch.rand(1)
    assert validation_losses(cfg, model) == first  # the same regions are drawn each time
    assert all(value == value for value in first.values())


def test_state_of_training_layers_is_put_back(tmp_path):
    """What changes in a forward pass in training, whatever it belongs to, is as before."""
    cfg, model = detector(tmp_path)
    model.add_module("extra", torch.nn.BatchNorm2d(3))
    model.loss_normalizer = 7.0
    model.register_buffer("seen", torch.zeros(()))
    model.train()
    before = everything(model)
    with EventStorage(), computing_losses(model):
        assert not model.extra.training and not torch.is_grad_enabled()
        model(batch())
        model.seen += 1
        model.loss_normalizer = 9.0
    assert_same(everything(model), before)
    assert model.loss_normalizer == 7.0


def test_what_restores_cannot_be_interrupted(tmp_path):
    """An interruption leaves the model as it was; none comes while that is made so."""
    cfg, model = detector(tmp_path)
    model.train()
    before, loss = everything(model), model.roi_heads.box_predictor.classification_loss
    seen = []

    @contextmanager
    def interruptible():
        yield
        seen.append(loss.training)

    validation_losses(cfg, model, interruptible)
    assert seen == [False] and loss.training

    @contextmanager
    def interrupted():
        yield
        raise StopRequested(15)

    with pytest.raises(StopRequested):
        validation_losses(cfg, model, interrupted)
    assert_same(everything(model), before)


@pytest.mark.parametrize(
    "overrides, without, message",
    [
        (["DATASETS.TEST", "()"], "", "DATASETS.TEST is empty: name a validation set"),
        (["MODEL.LOAD_PROPOSALS", "True"], "", "MODEL.LOAD_PROPOSALS is True: set it to False"),
        ([], "annotations", f"needs annotated images, and DATASETS.TEST .*{DATASET}.* has none"),
        ([], "segmentation", "LONG_TAIL.VALIDATION_LOSS_PERIOD: .* have no segmentation"),
    ],
)
def test_refused_before_the_training(tmp_path, monkeypatch, overrides, without, message):
    def lacking(names, filter_empty):
        records = get_detection_dataset_dicts(names, filter_empty=filter_empty)
        for part in (*records, *(a for record in records for a in record["annotations"])):
            part.pop(without, None)
        return records

    monkeypatch.setattr(validation_loss, "get_detection_dataset_dicts", lacking)
    keys = ["DATASETS.TEST", f"('{DATASET}',)", *overrides]
    cfg = small_config(tmp_path, "LongTailROIHeads", "SeesawLoss", *keys)
    with pytest.raises(UserError, match=message):
        ValidationLoss(cfg, torch.nn.Identity())


def test_damaged_image_is_named(tmp_path, dataset):
    cfg, model = detector(tmp_path, "LongTailROIHeads", "SeesawLoss")
    image = dataset / "3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:300])
    try:
        with pytest.raises(DatasetError, match="3.png.* damaged"):
            validation_losses(cfg, model)
    finally:
        image.write_bytes(whole)


def test_diverged_training_is_explained(tmp_path):
    """The weights may have become no numbers in the step before."""
    cfg, model = detector(tmp_path)
    with torch.no_grad():
        model.proposal_generator.rpn_head.anchor_deltas.weight[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=rf"image \d+ of {DATASET}: .* SOLVER.BASE_LR"):
        validation_losses(cfg, model)
