"""The two operations against plain autograd: values, gradients, and what they promise."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lt_detectron2.losses.focal import FocalTerms
from lt_detectron2.losses.gumbel import GumbelTerms
from lt_detectron2.ops import (
    LogitShifts,
    SoftmaxPart,
    TermWeights,
    one_pass,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from lt_detectron2.ops.one_pass import OnePass
from lt_detectron2.ops.sigmoid_ce import SIGMOID, BinaryTerms
from lt_detectron2.ops.softmax_ce import Compensation

from . import cross_entropy_reference as reference

R, L, BACKGROUND = 23, 9, 7

Operation = Callable[..., OnePass]
Reference = Callable[[Tensor], Tensor]


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _targets(high: int, rows: int = R) -> Tensor:
    return torch.randint(high, (rows,), generator=torch.Generator().manual_seed(2))


def _sigmoid(weights: TermWeights | None, **shift: object) -> tuple[Operation, Reference]:
    targets = _targets(L + 1)
    return (
        lambda z, **options: sigmoid_cross_entropy(
            z, targets[: len(z)], weights, background=BACKGROUND, **shift, **options
        ),
        lambda z: reference.sigmoid_losses(z, targets[: len(z)], weights, BACKGROUND, **shift),
    )


def _softmax(*parts: SoftmaxPart) -> tuple[Operation, Reference]:
    return (
        functools.partial(_apply_softmax, parts),
        lambda z: reference.softmax_losses(z, *parts),
    )


def _apply_softmax(parts: tuple[SoftmaxPart, ...], z: Tensor, **options: object) -> OnePass:
    return softmax_cross_entropy(z, *parts, **options)


def _shifts(**shifts: object) -> tuple[Operation, Reference]:
    return _softmax(SoftmaxPart(_targets(L), shifts=LogitShifts(**shifts)))


SOME_ROWS = _random(R) * (_random(R, seed=3) > 0.5)
CASES = {
    "sigmoid": _sigmoid(None),
    "sigmoid, a table": _sigmoid(TermWeights(_random(L), _random(L, seed=3))),
    "sigmoid, float32 tables of two rows": _sigmoid(
        TermWeights(_random(L).float(), _random(2, L, seed=3).float())
    ),
    "sigmoid, least score": _sigmoid(TermWeights(min_score=_random(L))),
    "sigmoid, least scores of two rows": _sigmoid(TermWeights(min_score=_random(2, L))),
    "sigmoid, bool mask": _sigmoid(TermWeights(mask=_random(R, L) > 0.5)),
    "sigmoid, rows of a mask": _sigmoid(
        TermWeights(mask=_random(3, L), mask_row=torch.arange(R) * 5 % 3)
    ),
    "sigmoid, everything": _sigmoid(
        TermWeights(_random(L), _random(2, L), _random(2, L), _random(R, L)),
        scale=1.7,
        offset=_random(2, L),
    ),
    "sigmoid, scale and offset": _sigmoid(None, scale=2.0, offset=_random(L)),
    "softmax": _softmax(SoftmaxPart(_targets(L))),
    "softmax, weights": _softmax(SoftmaxPart(_targets(L), SOME_ROWS)),
    "softmax, no weight at all": _softmax(SoftmaxPart(_targets(L), torch.zeros(R))),
    "softmax, scale and offset": _shifts(scale=2.0, offset=_random(L)),
    "softmax, own offset": _shifts(own_offset=_random(L)),
    "softmax, a column left out": _shifts(
        offset=torch.where(_random(L) > 0.5, 0.0, -torch.inf), own_offset=torch.zeros(L)
    ),
    "softmax, rows of what is kept": _shifts(
        kept=_random(3, L) > 0.5, kept_row=torch.arange(R) * 5 % 3
    ),
    "softmax, an offset of each row": _shifts(offset=_random(R, L), kept=_random(R, L) > 0.5),
    "softmax, seesaw": _shifts(log_count=3 * _random(L), compensation=Compensation(2.0, -2.0)),
    "softmax, two parts": _softmax(
        SoftmaxPart(_targets(5), SOME_ROWS, 1, 5, LogitShifts(kept=_random(R, 5) > 0.5)),
        SoftmaxPart(_targets(3), None, 6, shifts=LogitShifts(log_count=_random(3))),
    ),
}
each_case = pytest.mark.parametrize("operation, expected", CASES.values(), ids=CASES.keys())
OPERATIONS = {"sigmoid": CASES["sigmoid"][0], "softmax": CASES["softmax"][0]}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


@pytest.fixture(autouse=True, params=[4 * L, 1 << 18], ids=["blocks of 4 rows", "one block"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_pass, "CPU_BLOCK", request.param)


def _logits(rows: int = R) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, L, generator=generator, dtype=torch.float64).requires_grad_()


@each_case
def test_each_row_equals_autograd(operation: Operation, expected: Reference):
    logits = _logits()
    losses, correct = operation(logits).loss, expected(logits)
    assert_close(losses, correct)
    upstream = torch.linspace(-1, 1, R, dtype=torch.float64)
    for _ in range(2):  # a graph that is kept can be run again
        (gradient,) = torch.autograd.grad(losses, logits, upstream, retain_graph=True)
        (correct_gradient,) = torch.autograd.grad(correct, logits, upstream, retain_graph=True)
        assert_close(gradient, correct_gradient)


@each_case
@pytest.mark.parametrize("upstream", [1.0, -2.5])
def test_mean_equals_autograd(operation: Operation, expected: Reference, upstream: float):
    logits = _logits()
    value, correct = operation(logits, reduction="mean").loss, expected(logits).mean()
    assert_close(value, correct)
    (gradient,) = torch.autograd.grad(upstream * value, logits)
    assert_close(gradient, torch.autograd.grad(upstream * correct, logits)[0])


@each_case
@pytest.mark.parametrize("reduction", one_pass.REDUCTIONS)
def test_class_gradients_are_summed_magnitudes(
    operation: Operation, expected: Reference, reduction: str
):
    logits = _logits()
    (gradient,) = torch.autograd.grad(expected(logits).sum(), logits)
    result = operation(logits, reduction=reduction, class_gradients=True)
    # An own column's gradient is below 0, all others' are above it.
    assert_close(result.positive_gradient, -gradient.clamp(max=0).sum(dim=0))
    assert_close(result.negative_gradient, gradient.clamp(min=0).sum(dim=0))
    unwanted = operation(logits.detach(), reduction=reduction, class_gradients=True)
    assert_close(tuple(unwanted[1:]), tuple(result[1:]))
    assert operation(logits).positive_gradient is None


@each_operation
@pytest.mark.parametrize("reduction", one_pass.REDUCTIONS)
def test_gradient_is_the_derivative(operation: Operation, reduction: str):
    assert torch.autograd.gradcheck(lambda z: operation(z, reduction=reduction).loss, _logits())


@each_operation
def test_no_row(operation: Operation):
    def of_no_row(logits: Tensor, **options: object) -> OnePass:
        if operation is OPERATIONS["sigmoid"]:
            return operation(logits, **options)
        return softmax_cross_entropy(logits, SoftmaxPart(_targets(L)[:0]), **options)

    logits = torch.zeros(0, L, requires_grad=True)
    result = of_no_row(logits, reduction="mean", class_gradients=True)
    result.loss.backward()
    assert result.loss == 0 and logits.grad.shape == (0, L)
    assert not result.positive_gradient.any() and not result.negative_gradient.any()
    assert of_no_row(logits).loss.shape == (0,)


def test_rows_of_weight_0_are_not_looked_at():
    weights = SOME_ROWS
    operation, expected = _softmax(SoftmaxPart(_targets(L), weights))
    logits = _logits()
    with torch.no_grad():
        logits[weights == 0] = torch.nan
    result = operation(logits, class_gradients=True)
    (gradient,) = torch.autograd.grad(result.loss.sum(), logits)
    read = logits.detach().nan_to_num()  # of rows that do not count
    plain = expected(read.requires_grad_())
    assert_close(result.loss, plain)
    assert_close(gradient, torch.autograd.grad(plain.sum(), read)[0])
    assert torch.isfinite(result.negative_gradient).all()


@pytest.mark.parametrize("terms", [SIGMOID, FocalTerms(2.0), GumbelTerms(floored=False)])
def test_infinite_logits_of_the_last_column_and_of_rows_own(terms: BinaryTerms):
    """As an overflow of half precision gives them; the limit is what a large number gives."""
    targets = _targets(L + 1)
    has_own = targets < L
    rows = torch.arange(R)

    def run(size: float) -> tuple[Tensor, Tensor]:
        z = _logits().detach()
        z[~has_own, -1] = -size
        z[rows[has_own], targets[has_own]] = size
        z.requires_grad_()
        loss = sigmoid_cross_entropy(z, targets, background=BACKGROUND, terms=terms).loss
        return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]

    assert_close(run(float("inf")), run(1e4))


@each_operation
def test_it_can_be_differentiated_once(operation: Operation):
    logits = _logits()
    value = operation(logits, reduction="mean").loss
    with pytest.raises(RuntimeError, match="can be differentiated once: call backward without"):
        torch.autograd.grad(value, logits, create_graph=True)


@each_case
def test_nothing_is_written_to(operation: Operation, expected: Reference):
    logits = _logits()
    before, version = logits.detach().clone(), logits._version
    first = operation(logits, class_gradients=True)
    first.loss.sum().backward()
    assert torch.equal(logits, before) and logits._version == version
    second = operation(logits, class_gradients=True)  # nor to the tables
    assert_close(tuple(second), tuple(first), rtol=0, atol=0)


@each_operation
def test_layout_of_the_logits_is_no_matter(operation: Operation):
    logits = _logits()
    expected = operation(logits, reduction="mean").loss
    strided = logits.detach().t().contiguous().t().requires_grad_()
    value = operation(strided, reduction="mean").loss
    assert_close(value, expected)
    assert_close(torch.autograd.grad(value, strided), torch.autograd.grad(expected, logits))


@each_operation
def test_no_gradient_is_computed_that_nobody_wants(operation: Operation):
    with torch.no_grad():
        assert not operation(_logits()).loss.requires_grad
    assert not operation(_logits().detach()).loss.requires_grad


@each_case
def test_where_looking_is_not_free_results_are_the_same(
    operation: Operation, expected: Reference, monkeypatch: pytest.MonkeyPatch
):
    logits = _logits()
    before = operation(logits, reduction="mean").loss
    (gradient,) = torch.autograd.grad(2 * before, logits)
    monkeypatch.setattr(one_pass, "looking_is_free", lambda tensor: False)
    after = operation(logits, reduction="mean").loss
    assert_close(after, before)
    assert_close(torch.autograd.grad(2 * after, logits)[0], gradient)


@each_operation
def test_unknown_names_are_refused(operation: Operation):
    with pytest.raises(ValueError, match=r"reduction must be one of .*, got 'sum'"):
        operation(_logits(), reduction="sum")
    with pytest.raises(ValueError, match=r"implementation must be one of .*, got 'cuda'"):
        operation(_logits(), implementation="cuda")
