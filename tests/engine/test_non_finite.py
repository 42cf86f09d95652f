"""A loss that is no number: what the error says, what is saved, and that it can be replayed."""

import itertools
import signal
import time

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm

from lt_detectron2.commands.command_line import main
from lt_detectron2.data import statistics as data_statistics
from lt_detectron2.engine.checkpoint import LongTailCheckpointer
from lt_detectron2.engine.non_finite import (
    NonFiniteValues,
    check_losses,
    decode,
    encode,
    losses_by_image,
)
from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.stop import StopRequested
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.errors import CheckpointError, NonFiniteLossError, UserError
from tests.engine import small_set, toy_jobs, toy_training
from tests.modeling.detectors import NUM_CLASSES

NAME = "non_finite_test_set"


@pytest.fixture
def trainer(tmp_path, request):
    small_set.register(NAME, tmp_path)
    cfg = load_config(
        "configs/SynthLT/softmax_smoke.yaml",
        ["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path)]
        + ["MODEL.ROI_HEADS.NUM_CLASSES", str(NUM_CLASSES), "SOLVER.IMS_PER_BATCH", "8"]
        + ["LONG_TAIL.LOSS.NAME", "EqualizationLossV2", "MODEL.DEVICE", "cpu"]
        + ["DATALOADER.NUM_WORKERS", "0", "MODEL.MASK_ON", "True", "SOLVER.MAX_ITER", "3"]
        + getattr(request, "param", []),
    )
    yield LongTailTrainer(cfg)
    small_set.unregister(NAME)
    data_statistics._known.clear()


def classification_loss(trainer):
    return trainer.model.roi_heads.box_predictor.classification_loss


def spoil(trainer, spoiled_class):
    """Make the classification loss no number where a class is present, from iteration 1 on."""
    loss = classification_loss(trainer)
    forward = loss.forward

    def spoiled(logits, targets, **more):
        value = forward(logits, targets, **more)
        if trainer.iter >= 1 and (targets == spoiled_class).any():
            value = value * float("nan")
        return value

    loss.forward = spoiled


def test_images_and_classes_are_named(trainer, tmp_path, capsys):
    """The error names iteration, term, the image that alone gives it and its classes."""
    spoil(trainer, 4)  # only image 5 holds it
    with pytest.raises(NonFiniteLossError) as raised:
        trainer.train()
    message = str(raised.value)
    assert "loss_cls is nan" in message and "at iteration 1" in message
    assert "loss_box_reg" in message  # with its value, which is finite
    assert "each of these images alone gives it: image 5 with class 0, class 4" in message
    assert "The weights are finite: look at these images" in message
    (path,) = (tmp_path / "non_finite").iterdir()
    assert f"lt-detectron2 replay {path}" in message and path.name == "iteration_0000001.pth"

    saved = torch.load(path, weights_only=True)
    assert len(saved["batch"]) == 8
    assert [i["image_id"] for i in saved["images"] if i["is_cause"]] == [5]
    for name, value in trainer.model.named_parameters():
        assert torch.equal(saved["model"][name], value), name  # no step was taken

    # Also where the annotations are not.
    saved["config"] = saved["config"].replace("TRAIN: ''", f"TRAIN: {tmp_path / 'absent.json'}")
    torch.save(saved, path)
    assert main(["replay", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("iteration 1: loss_rpn_cls") or "loss_cls nan <--" in lines[0]
    replayed = dict(pair.rsplit(" ", 1) for pair in lines[1].split(": ", 1)[1].split(", "))
    for term, value in saved["terms"].items():
        if term != "loss_cls":  # it is right without what the test did to it
            assert float(replayed[term]) == pytest.approx(value, rel=1e-4), term
    assert len(lines) == 2 + 8


def test_diverged_weights_are_named(trainer, tmp_path, capsys):
    """Weights that are no numbers already are named as the reason, and replayed as such."""
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.bbox_pred.weight[0] = float("inf")
    with pytest.raises(NonFiniteLossError, match="1 parameters or buffers were not finite before"):
        trainer.train()
    (path,) = (tmp_path / "non_finite").iterdir()
    assert main(["replay", str(path)]) == 0
    assert "loss_box_reg nan <--" in capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (float("inf"), r"1 parameters or buffers were not finite before \(proposal_generator.*: "),
        (1e38, "The weights are finite, and every image gives it: perhaps "),
    ],
)
def test_proposals_are_explained(trainer, tmp_path, capsys, weight, reason):
    """Boxes that the RPN refuses, before there is a loss, are explained and saved like one."""
    with torch.no_grad():
        trainer.model.proposal_generator.rpn_head.anchor_deltas.weight[0] = weight
    message = f"proposals is nan at iteration 0; each of these .* {reason}the training has"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.train()
    (path,) = (tmp_path / "non_finite").iterdir()
    assert main(["replay", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 8 and all("proposals nan <--" in line for line in lines)


CASCADE = ["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads"]
CASCADE += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]


@pytest.mark.parametrize("trainer", [CASCADE], indirect=True)
def test_boxes_between_stages_are_explained(trainer):
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor[0].bbox_pred.weight[0] = float("inf")
    message = r"^proposals is nan at iteration 0; .* not finite before \(roi_heads.box_predictor.0"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.train()


def test_image_of_proposals_is_named(trainer, monkeypatch):
    proposals = trainer.model.proposal_generator
    forward = proposals.forward

    def refuse(images, features, instances):
        if any((of_image.gt_classes == 4).any() for of_image in instances):
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. And so on.")
        return forward(images, features, instances)

    monkeypatch.setattr(proposals, "forward", refuse)
    message = "each of these images alone gives it: image 5 with class 0, class 4. The weights are"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.train()


@pytest.mark.parametrize("error", [FloatingPointError("divide by zero"), AssertionError()])
def test_other_errors_are_left_alone(trainer, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(trainer.model.proposal_generator, "forward", fail)
    with pytest.raises(type(error)) as raised:
        trainer.train()
    assert raised.value is error


class Diverge(HookBase):
    """Weights become no numbers in step 1."""

    def after_step(self):
        if self.trainer.iter == 1:
            with torch.no_grad():
                self.trainer.model.roi_heads.box_predictor.bbox_pred.weight[0] = float("nan")


TESTED = ["DATASETS.TEST", f"('{NAME}',)"]


@pytest.mark.parametrize("trainer", [[*TESTED, "SOLVER.CHECKPOINT_PERIOD", "1"]], indirect=True)
def test_diverged_weights_are_not_saved(trainer, tmp_path):
    """Weights that are no numbers take the place of no checkpoint, and are not evaluated."""
    trainer.register_hooks([Diverge()])
    trainer._hooks.insert(0, trainer._hooks.pop())
    where = r"1 parameters have .* \(roi_heads.box_predictor.bbox_pred.weight\): the training has"
    with pytest.raises(NonFiniteLossError, match=f"^no checkpoint of iteration 1: {where}"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    with pytest.raises(NonFiniteLossError, match=f"^no evaluation: {where}"):
        trainer.evaluate()


@pytest.mark.parametrize("trainer", [TESTED], indirect=True)
def test_stop_saves_no_diverged_weights(trainer, tmp_path):
    """Also a stop during an evaluation leaves the checkpoint of before."""
    trainer.save("model_before")
    trainer.iter = 1
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.bbox_pred.weight[0] = float("nan")
    with pytest.raises(StopRequested), trainer.saving_before_stop():
        raise StopRequested(signal.SIGTERM)
    assert (tmp_path / "last_checkpoint").read_text() == "model_before.pth"


def test_diverged_weights_are_not_loaded(trainer, tmp_path):
    """A checkpoint whose weights are no numbers is refused, for whatever it is loaded."""
    layer = trainer.model.roi_heads.box_predictor.bbox_pred
    name = "roi_heads.box_predictor.bbox_pred.bias"
    state = {**trainer.model.state_dict(), name: torch.full_like(layer.bias, float("-inf"))}
    path = tmp_path / "diverged.pth"
    torch.save({"model": state}, path)
    message = rf"diverged.pth: 1 parameters have .* \({name}\), .* without --resume"
    with pytest.raises(CheckpointError, match=message):
        LongTailCheckpointer(trainer.model).load(str(path))
    layer.reset_parameters()  # what starts afresh may have been anything
    LongTailCheckpointer(trainer.model, reinit=[name]).load(str(path))


@pytest.mark.parametrize("trainer", [[*CASCADE, *TESTED]], indirect=True)
def test_evaluation_of_infinite_boxes_is_explained(trainer):
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor[0].bbox_pred.weight[0] = 1e38
    with pytest.raises(NonFiniteLossError, match=f"^evaluation of {NAME}: boxes are infinite or"):
        trainer.evaluate()


def train_spoiled_in_second(folder, data):
    """From step 3 on, in the second process, where class 4 is present."""
    forward, calls = toy_training.ToyDetector.forward, itertools.count()

    def spoiled(detector, batch):
        losses = forward(detector, batch)
        has_class = any((image["instances"].gt_classes == 4).any() for image in batch)
        if comm.get_rank() == 1 and next(calls) >= 3 and has_class:
            losses["loss_cls"] = losses["loss_cls"] * float("nan")
        return losses

    toy_training.ToyDetector.forward = spoiled
    toy_training.train(toy_training.config(folder, data, "SOLVER.IMS_PER_BATCH", "16"))


def test_one_of_two_processes(tmp_path, monkeypatch):
    """If it is one of two processes, both end within a minute, and its images are named."""
    toy_training.config(tmp_path, tmp_path)  # makes the data set
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"loss_cls is nan at iteration [3-9]; .*: image 5 with"):
        toy_jobs.launch_pair(monkeypatch, train_spoiled_in_second, tmp_path / "run", tmp_path)
    assert time.monotonic() - begin < toy_jobs.TIMEOUT
    (path,) = (tmp_path / "run" / "non_finite").iterdir()
    assert path.name.endswith("_rank1.pth")


def test_state_of_the_loss_is_left_alone(trainer):
    """Looking for the images changes no state of a loss and draws no random number."""
    spoil(trainer, 4)
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    before = {n: b.clone() for n, b in classification_loss(trainer).named_buffers()}
    expected = torch.get_rng_state()
    step = trainer._last_step
    losses_by_image(trainer.model, step.batch, step.random)
    assert torch.equal(torch.get_rng_state(), expected)
    for name, buffer in classification_loss(trainer).named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_check_reads_each_loss_once(monkeypatch):
    """The check waits for each loss once, as Detectron2 does, which then finds numbers."""
    read, written = [], []
    to_float = torch.Tensor.__float__

    class Step:
        def _write_metrics(self, losses, data_time):
            written.append(losses)

    def counted(tensor):
        read.append(tensor)
        return to_float(tensor)

    step = Step()
    check_losses(step)
    terms = {"loss_cls": torch.tensor(0.1, requires_grad=True), "loss_box_reg": torch.tensor(2.0)}
    monkeypatch.setattr(torch.Tensor, "__float__", counted)
    step._write_metrics(terms, 0.0)
    assert len(read) == len(terms)
    for name, value in written[0].items():
        assert value.item() == terms[name].item() and not value.requires_grad
    terms["loss_cls"] = torch.tensor(float("-inf"))
    with pytest.raises(NonFiniteValues, match="loss_cls"):
        step._write_metrics(terms, 0.0)
    assert len(written) == 1


def test_inputs_survive_a_file(tmp_path):
    """Images, boxes and masks of both kinds are the same after a file without pickle."""
    instances = Instances((8, 9))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 1, 2, 3]]))
    instances.gt_classes = torch.tensor([4])
    instances.gt_masks = PolygonMasks([[[0.0, 0, 3, 0, 3, 3]]])
    instances.gt_bits = BitMasks(torch.ones(1, 8, 9, dtype=torch.bool))
    batch = {"image": torch.zeros(3, 8, 9, dtype=torch.uint8), "image_id": 5, "height": 8}
    torch.save(encode({**batch, "instances": instances}), tmp_path / "file.pth")
    found = decode(torch.load(tmp_path / "file.pth", weights_only=True))
    assert found["image_id"] == 5 and torch.equal(found["image"], batch["image"])
    assert found["instances"].image_size == (8, 9)
    assert torch.equal(found["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert torch.equal(found["instances"].gt_bits.tensor, instances.gt_bits.tensor)
    assert found["instances"].gt_masks.polygons[0][0].tolist() == [0, 0, 3, 0, 3, 3]
