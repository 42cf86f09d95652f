"""A step in micro-batches is the step of the whole batch; mixed precision on a CPU."""

import copy

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lt_detectron2.engine import steps
from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.steps import StepTrainer, build_step_trainer, split_batch
from lt_detectron2.errors import ConfigError
from lt_detectron2.losses import EqualizationLossV2, SeesawLoss, SoftmaxCrossEntropyLoss
from lt_detectron2.modeling.accuracy import COUNT_PERIOD, LOG_PERIOD, ClassificationMonitor
from tests.losses.two_processes import run_in_two_processes
from tests.modeling.detectors import batch, small_config, small_detector

CLASSES, FEATURES, REGIONS, IMAGES = 5, 8, 6, 4


class Classifier(nn.Module):
    """A detector's classifier alone: images are pairs of features and targets."""

    def __init__(self, loss):
        super().__init__()
        self.layer = nn.Linear(FEATURES, loss.num_logits)
        self.loss = loss
        self.seen = []

    def forward(self, images):
        features, targets = (torch.cat(part) for part in zip(*images))
        logits = self.layer(features)
        self.seen.append((len(images), logits.dtype))
        return {"loss_cls": self.loss(logits, targets), "loss_size": logits.square().mean()}


def images(step, number=IMAGES):
    generator = torch.Generator().manual_seed(step)
    return [
        (
            torch.randn(REGIONS, FEATURES, generator=generator, dtype=torch.float64),
            torch.randint(0, CLASSES + 1, (REGIONS,), generator=generator),
        )
        for _ in range(number)
    ]


def trained(loss, micro_batches, batches, wrap=lambda model: model, stock=False, **options):
    torch.manual_seed(0)
    model = Classifier(loss).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    options = {} if stock else {"micro_batches": micro_batches, **options}
    trainer = (SimpleTrainer if stock else StepTrainer)(wrap(model), batches, optimizer, **options)
    with EventStorage() as storage:
        for trainer.iter in range(len(batches)):
            trainer.run_step()
            storage.step()
        return model, storage.latest().get("total_loss", [None])[0]  # the main process logs


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4])
def test_micro_batches_equal_the_batch(micro_batches):
    batches = [images(step) for step in range(3)]
    expected, logged = trained(SoftmaxCrossEntropyLoss(CLASSES), 1, batches, stock=True)
    model, total = trained(SoftmaxCrossEntropyLoss(CLASSES), micro_batches, batches)
    torch.testing.assert_close(model.layer.weight, expected.layer.weight, rtol=1e-13, atol=1e-15)
    assert total == pytest.approx(logged, rel=1e-12)
    assert len(model.seen) == 3 * micro_batches and sum(n for n, _ in model.seen) == 3 * IMAGES


def test_stateful_losses_count_each_region_once():
    batches = [images(step) for step in range(3)]
    whole, _ = trained(SeesawLoss(CLASSES), 1, batches)
    parts, _ = trained(SeesawLoss(CLASSES), 4, batches)
    targets = torch.cat([targets for step in batches for _, targets in step])
    seen = torch.bincount(targets, minlength=CLASSES + 1)[:CLASSES]
    start = SeesawLoss(CLASSES).region_count
    assert torch.equal((parts.loss.region_count - start)[:CLASSES], seen.to(start.dtype))
    assert torch.equal(parts.loss.region_count, whole.loss.region_count)


def test_a_micro_batch_sees_the_state_of_those_before_it():
    batches = [images(0)]
    parts, _ = trained(EqualizationLossV2(CLASSES), 2, batches)
    torch.manual_seed(0)
    loss = EqualizationLossV2(CLASSES)
    model = Classifier(loss).double()
    for part in split_batch(batches[0], 2):
        model(part)
    for name, expected in loss.named_buffers():
        assert torch.equal(parts.loss.get_buffer(name), expected), name


def test_split():
    assert split_batch([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]]
    assert split_batch([1, 2], 4) == [[1], [2]]


def in_one_of_two(rank):
    batches = [images(step)[2 * rank : 2 * rank + 2] for step in range(2)]
    reductions = []

    def wrap(model):
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        wrapped.register_comm_hook(None, lambda state, bucket: count(bucket))
        return wrapped

    def count(bucket):
        reductions.append(1)
        future = torch.distributed.all_reduce(bucket.buffer() / 2, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    model, _ = trained(SoftmaxCrossEntropyLoss(CLASSES), 2, batches, wrap)
    return {"weight": model.layer.weight.detach(), "reductions": len(reductions)}


def test_two_processes_reduce_once_a_step():
    """Gradients of a batch in parts are summed over the processes once, at its last part."""
    expected, _ = trained(SoftmaxCrossEntropyLoss(CLASSES), 1, [images(s) for s in range(2)])
    for result in run_in_two_processes(in_one_of_two):
        torch.testing.assert_close(result["weight"], expected.layer.weight, rtol=1e-12, atol=0)
        assert result["reductions"] == 2


def test_detector_in_bfloat16_and_parts(tmp_path):
    cfg = small_config(
        tmp_path,
        "LongTailROIHeads",
        "SeesawLoss",
        *("SOLVER.AMP.ENABLED", "True", "LONG_TAIL.SOLVER.AMP_DTYPE", "bfloat16"),
        *("LONG_TAIL.SOLVER.MICRO_BATCHES", "2", "INPUT.MASK_FORMAT", "bitmask"),
    )
    model = small_detector(cfg)
    logits = []
    predictor = model.roi_heads.box_predictor
    predictor.cls_score.register_forward_hook(lambda *io: logits.append(io[2].dtype))
    before = predictor.cls_score.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = build_step_trainer(cfg, model, [batch()], optimizer, 2)
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
        assert {"loss_cls", "loss_box_reg", "loss_mask", "total_loss"} <= set(storage.latest())
    assert logits == [torch.bfloat16] * 2
    assert predictor.cls_score.weight.dtype == torch.float32
    assert not torch.equal(predictor.cls_score.weight, before)

    state = trainer.state_dict()
    trainer.load_state_dict(state)
    assert "grad_scaler" in state


def in_float16(device, batches):
    torch.manual_seed(0)
    model = Classifier(SoftmaxCrossEntropyLoss(CLASSES)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return StepTrainer(model, batches, optimizer, micro_batches=2, precision=torch.float16)


def on(device, step):
    return [(features.float().to(device), targets.to(device)) for features, targets in images(step)]


def run_step(trainer):
    with EventStorage():
        trainer.iter = 0
        trainer.run_step()


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")),
    ],
)
def test_float16(device):
    """Gradients are scaled and taken back; one that overflows costs its step and halves it."""
    one = torch.ones(1, 1, device=device)
    try:
        with torch.autocast(device, dtype=torch.float16):
            computes = (one @ one).dtype == torch.float16
    except RuntimeError:
        computes = False
    if not computes:
        pytest.skip("this torch has no float16 here")
    batch = on(device, 0)
    trainer = in_float16(device, [batch, batch])
    expected = copy.deepcopy(trainer.model)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    sum(expected(batch).values()).backward()
    optimizer.step()

    run_step(trainer)
    layer, scale = trainer.model.layer, trainer.grad_scaler.get_scale()
    assert trainer.grad_scaler.is_enabled() and scale > 1
    assert trainer.model.seen == [(2, torch.float16)] * 2 and layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight, expected.layer.weight, rtol=5e-3, atol=5e-4)

    before = layer.weight.detach().clone()
    handle = layer.weight.register_hook(lambda gradient: gradient * float("inf"))
    run_step(trainer)
    handle.remove()
    assert torch.equal(layer.weight, before)
    assert trainer.grad_scaler.get_scale() == scale / 2

    resumed = in_float16(device, [batch])
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.grad_scaler.state_dict() == trainer.grad_scaler.state_dict()
    assert resumed.grad_scaler.get_scale() == scale / 2


@pytest.mark.parametrize("before", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("after", [None, torch.bfloat16, torch.float16])
def test_another_precision_goes_on(before, after):
    """A checkpoint resumes in whatever precision; the scale of gradients is taken where it is."""

    def stepper(precision):
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return StepTrainer(model, [], optimizer, precision=precision)

    first, second = stepper(before), stepper(after)
    first.grad_scaler._scale = torch.tensor(4.0)
    second.load_state_dict(first.state_dict())
    scale = {torch.float16: 4.0 if before == torch.float16 else 65536.0}.get(after, 1.0)
    assert second.grad_scaler.get_scale() == scale


def test_which_steps_a_config_has():
    def build(*overrides):
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return build_step_trainer(load_config("", list(overrides)), model, [], optimizer, 4)

    assert type(build()) is SimpleTrainer  # bit for bit Detectron2's
    trainer = build("LONG_TAIL.SOLVER.MICRO_BATCHES", "4")
    assert trainer.micro_batches == 4 and trainer.precision is None
    for overrides, message in [
        (("LONG_TAIL.SOLVER.MICRO_BATCHES", "5"), "expected 1 to 4"),
        (("LONG_TAIL.SOLVER.MICRO_BATCHES", "0"), "expected 1 to 4"),
        (("LONG_TAIL.SOLVER.AMP_DTYPE", "half"), "expected one of: float16, bfloat16"),
        (("SOLVER.AMP.ENABLED", "True"), "set LONG_TAIL.SOLVER.AMP_DTYPE bfloat16"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build(*overrides)
    assert set(steps.PRECISIONS) == {"float16", "bfloat16"}


def test_scores_are_made_in_few_iterations():
    monitor = ClassificationMonitor(CLASSES)
    made = []

    def scores(logits):
        made.append(logits)
        return logits

    logits = torch.eye(CLASSES + 1)
    with EventStorage() as storage:
        for _ in range(LOG_PERIOD):
            for _ in range(2):  # micro-batches
                monitor.update(scores, logits, torch.arange(CLASSES + 1))
            storage.step()
        history = storage.history("fast_rcnn/cls_accuracy").values()
    assert len(made) == 2 * LOG_PERIOD / COUNT_PERIOD
    assert [value for value, _ in history] == [1.0]  # logged once, in spite of the parts
