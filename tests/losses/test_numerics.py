"""Every loss and add-on where numbers get difficult: half precision, many regions, many classes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lt_detectron2.losses import GAPLoss, HarmonicCoupling, harmonic_iou_loss
from lt_detectron2.losses.base import ClassificationLoss
from lt_detectron2.statistics import ClassStatistics

from .factory import STATISTICS, cases

Make = Callable[..., ClassificationLoss]


class Ranked(nn.Module):
    """A classification loss with a ranking loss beside it."""

    def __init__(self, statistics: ClassStatistics, **switches: object):
        super().__init__()
        self.classification = cases()["SoftmaxCrossEntropyLoss"](statistics)
        self.ranking = GAPLoss(statistics.num_classes, statistics, **switches)
        self.num_classes = statistics.num_classes
        self.num_logits = self.classification.num_logits

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        ranking = self.ranking(self.classification.class_logits(logits), targets)
        return self.classification(logits, targets) + ranking.loss

    def scores(self, logits: Tensor) -> Tensor:
        return self.classification.scores(logits)


class Coupled(nn.Module):
    """Harmonic coupling of a classification loss with HIoU of boxes made from the same logits."""

    def __init__(self, statistics: ClassStatistics, **switches: object):
        super().__init__()
        self.classification = cases()["SigmoidCrossEntropyLoss"](statistics)
        self.coupling = HarmonicCoupling(**switches)
        self.num_classes = statistics.num_classes
        self.num_logits = self.classification.num_logits

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        with torch.autocast("cpu", enabled=False):
            losses = self.classification.region_losses(logits, targets)
            scores = self.classification.scores(logits)
            foreground = (targets < self.num_classes).nonzero()[:, 0]
            corners = logits[foreground, :1].clamp(-1e3, 1e3)
            boxes = torch.cat([corners, corners, corners + 10, corners + 20], dim=1)
            box_losses = harmonic_iou_loss(boxes, torch.ones_like(boxes).cumsum(1) * 3)
            own = scores[foreground, targets[foreground]]
            coupled = self.coupling(losses[foreground], box_losses, own)
            total = losses.index_put((foreground,), coupled[0].to(losses.dtype)).sum()
        return (total + coupled[1].sum()) / max(len(targets), 1)

    def scores(self, logits: Tensor) -> Tensor:
        return self.classification.scores(logits)


def _add_on(module: type[nn.Module], statistics: ClassStatistics = STATISTICS, **switches: object):
    return module(statistics, **switches)


ADD_ONS = {
    "GAPLoss": partial(_add_on, Ranked),
    "GAPLoss(ap_style)": partial(
        _add_on, Ranked, ap_style=True, category_specific=False, statistic=False
    ),
    "HarmonicCoupling": partial(_add_on, Coupled),
}
EVERYTHING = {**cases(), **ADD_ONS}
each_case = pytest.mark.parametrize("make", EVERYTHING.values(), ids=EVERYTHING.keys())


def long_tail(num_classes: int, absent: int = 0) -> ClassStatistics:
    """Counts from 10,000 down to 1; the last classes have no sample."""
    images = (10_000 / torch.arange(1, num_classes + 1)).ceil().long()
    images[num_classes - absent :] = 0
    return ClassStatistics((2 * images).tolist(), images.tolist(), 20_000)


def batch(loss: nn.Module, regions: int, *, foreground: float = 0.3, seed: int = 0, std: float = 2):
    """Float32 logits and targets of any class."""
    generator = torch.Generator().manual_seed(seed)
    logits = std * torch.randn(regions, loss.num_logits, generator=generator)
    classes = torch.randint(0, loss.num_classes, (regions,), generator=generator)
    is_object = torch.rand(regions, generator=generator) < foreground
    return logits.requires_grad_(), classes.where(is_object, torch.tensor(loss.num_classes))


def is_finite(*tensors: Tensor) -> bool:
    return all(tensor.isfinite().all() for tensor in tensors)


def assert_valid(loss: nn.Module, logits: Tensor) -> None:
    scores = loss.scores(logits.detach())
    assert scores.shape == (len(logits), loss.num_classes + 1)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert is_finite(*loss.state_dict().values())


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_trains_in_mixed_precision(make: Make, dtype: torch.dtype):
    """Under autocast, with a GradScaler, the weights stay finite and no step is skipped."""
    loss = make()
    classifier = nn.Linear(8, loss.num_logits)
    before = classifier.weight.detach().clone()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    _, targets = batch(loss, 24)
    for step in range(8):
        features = torch.randn(24, 8) * (10 if step == 4 else 1)
        with torch.autocast("cpu", dtype=dtype):
            logits = classifier(features)
            value = loss(logits, targets)
        assert logits.dtype == dtype and value.dtype == torch.float32
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        assert is_finite(value, *classifier.parameters())
    assert scaler.get_scale() == 2.0**8  # it falls where a gradient was not finite
    assert not torch.equal(classifier.weight, before)
    assert_valid(loss, logits)


@each_case
@pytest.mark.parametrize("regions", [5_000, pytest.param(100_000, marks=pytest.mark.reliability)])
def test_many_regions(make: Make, regions: int):
    """Sums over 100,000 regions in float32 agree with those in float64."""
    loss = make()
    logits, targets = batch(loss, regions)
    value = loss(logits, targets)
    (gradient,) = torch.autograd.grad(value, logits)
    assert is_finite(value, gradient)
    assert_valid(loss, logits)
    expected = make()(logits.double(), targets)
    assert_close(value, expected.to(value.dtype), rtol=1e-4, atol=1e-5)


@each_case
@pytest.mark.parametrize("std", [2.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits(make: Make, dtype: torch.dtype, std: float):
    """Logits of 16 bits, up to 1e4 and more, give the loss and gradient that they have in 32."""
    loss = make()
    logits, targets = batch(loss, 32, std=std)
    half = logits.detach().clamp(-6e4, 6e4).to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        value = loss(half, targets)
    expected = make()(single, targets)
    assert value.dtype == torch.float32 and is_finite(value)
    assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, half)
    (wanted,) = torch.autograd.grad(expected, single)
    assert gradient.dtype == dtype and is_finite(gradient)
    assert_close(gradient, wanted.to(dtype))
    assert_valid(loss, half)


@each_case
@pytest.mark.parametrize("num_classes", [1, 5_000])
@pytest.mark.parametrize("std", [2.0, 1e4])
def test_number_of_classes(make: Make, num_classes: int, std: float):
    """One class and 5,000, a tenth of them without samples, with logits up to 1e4."""
    loss = make(long_tail(num_classes, absent=num_classes // 10))
    logits, targets = batch(loss, 32, std=std)
    value = loss(logits, targets)
    (gradient,) = torch.autograd.grad(value, logits)
    assert is_finite(value, gradient)
    assert_valid(loss, logits)


@each_case
def test_background_only_for_100_steps(make: Make):
    """After 100 steps without an object nothing has run away, and objects are still learnt."""
    loss = make()
    classifier = nn.Linear(8, loss.num_logits)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9)
    for _ in range(100):
        logits = classifier(torch.randn(16, 8))
        value = loss(logits, torch.full((16,), loss.num_classes))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert is_finite(value, *classifier.parameters())
    assert_valid(loss, logits)
    logits, targets = batch(loss, 24, foreground=1.0)
    value = loss(logits, targets)
    (gradient,) = torch.autograd.grad(value, logits)
    assert is_finite(value, gradient) and gradient.any()


@each_case
def test_gradients_accumulate(make: Make):
    """Backward passes after several forward passes give what they give one by one."""
    inputs = []
    for seed in range(3):
        inputs.append(batch(make(), 24, seed=seed))
    loss = make()
    one_by_one = [torch.autograd.grad(loss(*pair), pair[0])[0] for pair in inputs]
    loss = make()
    values = [loss(*pair) for pair in inputs]
    later = torch.autograd.grad(sum(values), [logits for logits, _ in inputs])
    assert_close(list(later), one_by_one)
