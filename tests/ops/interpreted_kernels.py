"""
The Triton kernels on the CPU, run by Triton's interpreter: test_triton.py runs this file in a
process of its own, since TRITON_INTERPRET=1 must be set before Triton is imported.
"""

import functools

import pytest
import torch
from torch.testing import assert_close

from lt_detectron2.losses import SoftmaxCrossEntropyLoss
from lt_detectron2.ops import (
    SoftmaxPart,
    implementations,
    sigmoid_ce_triton,
    sigmoid_cross_entropy,
    softmax_ce_triton,
    softmax_cross_entropy,
)
from lt_detectron2.ops.one_pass_triton import scale_rows_
from tests.losses.factory import batch, cases, state_of, value_and_gradient

from .kernel_cases import check, logits, operations

NAMES = list(operations(1, 5))
each_operation = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def few_tiles(monkeypatch: pytest.MonkeyPatch):
    """Several of them a program, but no more than the interpreter can work off in a moment."""
    monkeypatch.setattr(sigmoid_ce_triton, "TILES", 2)
    monkeypatch.setattr(softmax_ce_triton, "TILES_OF_SUMS", 2)


def test_no_row():
    for operation in operations(0, 5).values():
        check(operation, logits(0, 5))


@each_operation
@pytest.mark.parametrize("rows", [1, 7])
def test_small(name: str, rows: int):
    check(operations(rows, 5)[name], logits(rows, 5))


@each_operation
def test_several_programs_and_strips(name: str):
    check(operations(21, 400)[name], logits(21, 400))


@pytest.mark.parametrize("name", [name for name in NAMES if "everything" in name])
def test_size_of_lvis(name: str):
    check(operations(33, 1204)[name], logits(33, 1204))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("softmax")])
def test_rows_longer_than_a_block(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(softmax_ce_triton, "MAX_BLOCK", 16)
    check(operations(9, 37)[name], logits(9, 37))


def test_one_column():
    part = SoftmaxPart(torch.zeros(7, dtype=torch.int64))
    check(lambda z, **options: softmax_cross_entropy(z, part, **options), logits(7, 1))
    targets = torch.arange(7) % 2
    check(functools.partial(sigmoid_cross_entropy, targets=targets, background=1), logits(7, 1))


@each_operation
def test_extreme_logits(name: str):
    z = (1e4 * logits(12, 40).detach().sign()).requires_grad_()
    check(operations(12, 40)[name], z, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("softmax")])
@pytest.mark.parametrize("damage", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_shows_where_torch_shows_it(name: str, damage: float):
    operation, z = operations(180, 9)[name], logits(180, 9).detach()
    row = torch.arange(180)
    z[row, row % 9] = damage  # each column, which is some rows' own and stands for none without
    results = []
    for implementation in ("torch", "triton"):
        given = z.clone().requires_grad_()
        loss = operation(given, implementation=implementation).loss
        (gradient,) = torch.autograd.grad(loss.sum(), given)
        # Whether it is infinite or not a number is left open.
        results.append([item.detach().nan_to_num(-1, -1, -1) for item in (loss, gradient)])
    assert_close(*results, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("columns, block", [(5, 2048), (37, 16)])
def test_target_that_is_no_column(columns: int, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(softmax_ce_triton, "MAX_BLOCK", block)
    z, targets = logits(9, columns), torch.arange(9) % columns
    expected = softmax_cross_entropy(z, SoftmaxPart(targets), implementation="torch").loss
    is_bad = torch.zeros(9, dtype=torch.bool)
    is_bad[[3, 5]] = True
    targets[is_bad] = torch.tensor([-1, columns])
    losses = softmax_cross_entropy(z, SoftmaxPart(targets), implementation="triton").loss
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    assert losses[is_bad].isnan().all() and gradient[is_bad].isnan().all()
    assert_close(losses[~is_bad], expected[~is_bad], rtol=1e-4, atol=2e-5)
    assert gradient[~is_bad].isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if "everything" in name])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype):
    operation = operations(7, 20)[name]
    z = logits(7, 20).detach().to(dtype)
    values = []
    for given in (z.clone(), z.float()):
        given.requires_grad_()
        loss = operation(given, implementation="triton", reduction="mean").loss
        values.append((loss.detach(), torch.autograd.grad(loss, given)[0]))
    (loss, gradient), (expected, expected_gradient) = values
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    assert_close(loss, expected, rtol=0, atol=0)
    rounding = 2**-7 if dtype == torch.bfloat16 else 0  # the interpreter cuts off
    assert_close(gradient, expected_gradient.to(dtype), rtol=rounding, atol=0)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_layout_of_the_logits_is_no_matter(name: str):
    operation, z = operations(7, 20)[name], logits(7, 20)
    for strided in (z.detach().t().contiguous().t(), logits(7, 23).detach()[:, 1:21]):
        check(operation, strided.requires_grad_())


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_graph_that_is_kept_can_be_run_again(name: str):
    z = logits(20, 300)
    loss = operations(20, 300)[name](z, implementation="triton", reduction="mean").loss
    (first,) = torch.autograd.grad(3 * loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, z, retain_graph=True)
    (third,) = torch.autograd.grad(loss, z)
    assert_close(first, second, rtol=0, atol=0)
    assert_close(first, 3 * third)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, z)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_it_can_be_differentiated_once(name: str):
    z = logits(7, 20)
    loss = operations(7, 20)[name](z, implementation="triton", reduction="mean").loss
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("factor", [1.0, -2.5, float("nan")])
def test_scaling_by_one_number(factor: float):
    gradient = logits(33, 300).detach()
    expected = gradient * factor
    assert_close(scale_rows_(gradient, torch.tensor(factor)), expected, equal_nan=True)


def test_scaling_row_by_row():
    gradient, factor = logits(33, 300).detach(), torch.ones(66)[::2]
    factor[::3] = 0.5
    expected = gradient * factor[:, None]
    assert_close(scale_rows_(gradient, factor), expected)


@pytest.mark.parametrize("name", cases())
def test_each_loss(name: str):
    states, values = [], []
    for implementation in ("torch", "triton"):
        loss = cases()[name]()
        loss.implementation = implementation
        for seed in range(2):
            z, targets = batch(loss, seed=seed, dtype=torch.float32)
            values.append(value_and_gradient(loss, z, targets))
        states.append(state_of(loss))
    assert_close(values[2:], values[:2], rtol=1e-4, atol=1e-5)
    assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)


def test_losses_use_the_kernels():
    """So that the test above compares what it says."""
    without = [name for name in cases() if not _uses_a_kernel(name)]
    assert without == [SoftmaxCrossEntropyLoss.__name__]  # which is Detectron2's to the last bit


def _uses_a_kernel(name: str) -> bool:
    loss = cases()[name]()
    loss.implementation = "triton"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implementations, "is_interpreted", lambda: False)
        try:
            loss(*batch(loss, dtype=torch.float32))
        except ValueError as error:
            return "is impossible here" in str(error)
    return False
