"""The ranking kernel against its definition, in all layouts and types."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lt_detectron2.ops import one_pass, ranking, ranking_errors
from tests.golden import load_golden
from tests.parity import compare
from tests.synchronisation import NoSynchronisation

from . import ranking_reference as reference

R, C = 20, 7


def _scores(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    scores = torch.randn(R, C, dtype=torch.float64)
    scores = {
        "spread": lambda: 2 * scores,
        "ties": lambda: scores.mul(4).round() / 4,  # also at distance delta
        "all equal": lambda: torch.full_like(scores, 0.3),
        "far apart": lambda: 40 * scores,
        "extreme": lambda: 1e4 * scores.sign(),
        "one outlier": lambda: scores.masked_fill(torch.arange(R * C).view(R, C) == 2 * C, 1e4),
        "half a step": lambda: scores.sign() / 2,
    }[kind]()
    return scores.to(dtype)


KINDS = ("spread", "ties", "all equal", "far apart", "extreme", "one outlier", "half a step")


def _positives(num: int = 9) -> tuple[Tensor, Tensor]:
    """One positive in each of some rows, in three columns, which are their groups."""
    rows = torch.arange(num) * 2
    columns = torch.tensor([0, 3, 3, 1, 0, 3, 3, 3, 1])[:num]
    return rows * C + columns, columns


def _with_gradient(
    scores: Tensor, positives: Tensor, upstream: Tensor, *args: Tensor | None, **options: object
) -> tuple[Tensor, Tensor]:
    scores = scores.detach().requires_grad_()
    errors = ranking_errors(scores, positives, *args, **options)
    (gradient,) = torch.autograd.grad(errors, scores, upstream.double())
    return errors.detach(), gradient


# ---- values and gradients


def test_value_by_hand():
    # The positive at 0 meets a negative of its own height (1/2), one a quarter above (3/4), one far
    # above (1) and one far below (0): 9/4, and 1/2 for itself. Error (9/4) / (11/4) = 9/11.
    scores = torch.tensor([[0.0, 0.0, 0.25], [3.0, -3.0, -9.0]])
    errors, gradient = _with_gradient(scores, torch.tensor([0]), torch.ones(1))
    assert_close(errors, torch.tensor([9 / 11], dtype=torch.float64))
    expected = torch.tensor([[-9.0, 2.0, 3.0], [4.0, 0.0, 0.0]]) / 11
    assert_close(gradient, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exclude", [True, False], ids=["excluded", "counted"])
@pytest.mark.parametrize("delta", [0.5, 1.0, 7.0])
def test_equals_slow_reference(kind: str, exclude: bool, delta: float):
    scores, (positives, groups) = _scores(kind), _positives()
    upstream = torch.rand(len(positives), dtype=torch.float64)
    options = {"delta": delta, "exclude_positives": exclude}
    actual = _with_gradient(scores, positives, upstream, groups, **options)
    expected = reference.ranking_errors(scores, positives, groups, upstream, **options)
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_interpolation_equals_slow_reference(kind: str):
    scores, (positives, _) = _scores(kind), _positives()
    upstream = torch.rand(len(positives), dtype=torch.float64)
    actual = _with_gradient(scores, positives, upstream, delta=1.0, interpolate=True)
    expected = reference.average_precision_errors(scores, positives, upstream, delta=1.0)
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_exact_to_float32(kind: str):
    scores, (positives, groups) = _scores(kind, torch.float32), _positives()
    upstream = torch.ones(len(positives))
    errors, gradient = _with_gradient(scores, positives, upstream, groups)
    expected = reference.ranking_errors(scores.double(), positives, groups, upstream.double())
    assert errors.dtype == torch.float64 and gradient.dtype == torch.float32
    assert_close(errors, expected[0], rtol=0, atol=1e-6)
    assert_close(gradient.double(), expected[1], rtol=0, atol=1e-6 * expected[1].abs().max())


def test_many_cells_in_float32():
    # 3e5 cells a hair above or below the positives: sums of them must not be kept in float32.
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(300, 1203, generator=generator) * 0.5
    scores[:, ::3] += 4
    positives = torch.randperm(scores.numel(), generator=generator)[:24]
    groups = torch.arange(24) % 5
    upstream = torch.rand(24, generator=generator)
    errors, gradient = _with_gradient(scores, positives, upstream, groups)
    expected = reference.ranking_errors(scores.double(), positives, groups, upstream.double())
    assert_close(errors, expected[0], rtol=0, atol=1e-8)
    assert_close(gradient.double(), expected[1], rtol=0, atol=1e-6 * expected[1].abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    scores, (positives, groups) = _scores("spread", dtype), _positives()
    upstream = torch.rand(len(positives))
    errors, gradient = _with_gradient(scores, positives, upstream, groups)
    expected, expected_gradient = _with_gradient(scores.float(), positives, upstream, groups)
    assert gradient.dtype == dtype
    assert_close(errors, expected, rtol=0, atol=0)
    assert_close(gradient, expected_gradient.to(dtype), rtol=0, atol=0)


# ---- invariants


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exclude", [True, False], ids=["excluded", "counted"])
def test_gradient_sums_to_zero(kind: str, exclude: bool):
    positives, groups = _positives()
    upstream = torch.rand(len(positives))
    errors, gradient = _with_gradient(
        _scores(kind), positives, upstream, groups, exclude_positives=exclude
    )
    assert_close(gradient.sum().item(), 0.0, rtol=0, atol=1e-12)
    if exclude:
        assert_close(gradient.abs().sum(), 2 * (upstream * errors).sum())


def test_no_gradient_where_and_only_where_the_ranking_is_perfect():
    positives, groups = _positives()
    scores = _scores("spread", torch.float32).clamp(max=1.5)
    scores.view(-1)[positives] = 2.0  # above all by exactly delta, or more
    scores[1, 0] = 1.5
    errors, gradient = _with_gradient(scores, positives, torch.ones(9), groups)
    assert errors.eq(0).all() and gradient.eq(0).all()
    scores[1, 0] = 1.51
    errors, gradient = _with_gradient(scores, positives, torch.ones(9), groups)
    assert errors.gt(0).all() and gradient.count_nonzero() == 10


def test_columns_and_rows_have_no_order():
    scores, (positives, groups) = _scores("ties"), _positives()
    upstream = torch.rand(len(positives))
    errors, gradient = _with_gradient(scores, positives, upstream, groups)
    order = torch.randperm(R * C)
    place = order.argsort()
    moved, moved_gradient = _with_gradient(
        scores.flatten()[order].view(R, C), place[positives], upstream, (groups + 5) % 7
    )
    assert_close(moved, errors)
    assert_close(moved_gradient.flatten()[place].view(R, C), gradient)


def test_ignored_cells_have_no_part():
    scores, (positives, groups) = _scores("spread"), _positives()
    upstream = torch.rand(len(positives))
    ignored = torch.rand(R, C) < 0.3
    ignored.view(-1)[positives] = False
    errors, gradient = _with_gradient(
        scores.masked_fill(ignored, -torch.inf), positives, upstream, groups
    )
    lowest = scores.masked_fill(ignored, -1e6)
    expected = reference.ranking_errors(lowest, positives, groups, upstream.double())
    assert_close((errors, gradient), expected)
    assert gradient[ignored].eq(0).all()


# ---- placeholders and empty input


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"exclude_positives": False}, {"interpolate": True}], ids=str
)
def test_placeholders_change_nothing(kind: str, options: dict[str, bool]):
    scores, (positives, groups) = _scores(kind), _positives()
    groups = None if options.get("interpolate") else groups
    upstream = torch.rand(len(positives))
    expected, expected_gradient = _with_gradient(scores, positives, upstream, groups, **options)
    valid = torch.ones(len(positives) + 4, dtype=torch.bool)
    places = torch.tensor([0, 4, 5, 12])
    valid[places] = False
    padded = torch.zeros(3, len(valid), dtype=torch.int64)  # group 0, and some cell nobody has
    padded[0, places] = torch.tensor([C, 3 * C, C + 2, R * C - 1])
    padded[0, valid] = positives
    if groups is not None:
        padded[1, valid] = groups
    factors = torch.ones(len(valid))
    factors[valid] = upstream
    errors, gradient = _with_gradient(
        scores, padded[0], factors, None if groups is None else padded[1], valid, **options
    )
    assert_close(errors[valid], expected)
    assert errors[~valid].eq(0).all()
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(("rows", "num"), [(0, 0), (3, 0), (3, 3)])
def test_no_positive_costs_nothing_and_has_a_graph(rows: int, num: int):
    scores = torch.randn(rows, C, requires_grad=True)
    errors = ranking_errors(
        scores, torch.arange(num), torch.arange(num), torch.zeros(num, dtype=torch.bool)
    )
    assert errors.shape == (num,) and errors.eq(0).all()
    errors.sum().backward()
    assert scores.grad.shape == scores.shape and scores.grad.eq(0).all()


# ---- layouts, chunks and buckets


def test_layout_of_the_scores_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "CPU_CHUNK", 3 * C)  # the last chunk is a smaller one
    scores, (positives, groups) = _scores("spread"), _positives()
    upstream = torch.rand(len(positives))
    expected = reference.ranking_errors(scores, positives, groups, upstream.double())
    wide = torch.randn(R, C + 2, dtype=torch.float64)
    wide[:, :C] = scores
    for view in (scores, wide[:, :C], scores.t().contiguous().t()):
        assert_close(_with_gradient(view, positives, upstream, groups), expected)


def test_inputs_are_left_alone():
    scores, (positives, groups) = _scores("ties"), _positives()
    valid = torch.arange(9) > 2
    inputs = (scores, positives, groups, valid)
    before = [item.clone() for item in inputs]
    scores.requires_grad_()
    ranking_errors(*inputs, exclude_positives=False).sum().backward()
    assert_close([item.detach() for item in inputs], before, rtol=0, atol=0)


@pytest.mark.parametrize("num_ends", [1, 2, 300])
@pytest.mark.parametrize("kind", [*KINDS, "neighbours"])
def test_buckets_are_those_of_a_binary_search(kind: str, num_ends: int):
    if kind == "neighbours":  # numbers that no grid tells apart, and one far away
        scores = (1 + torch.arange(R * C) * 2**-23).view(R, C)
        scores[0, 0] = -3000.0
    else:
        scores = _scores(kind, torch.float32)
    own = scores.flatten()[torch.randint(R * C, (num_ends,))]
    valid = torch.rand(num_ends) < 0.8
    windows = ranking._Windows.around(own, valid, 2.0**-12 if kind == "neighbours" else 0.5)
    cells = torch.cat([scores.flatten(), windows.left[windows.left.isfinite()]])
    cells = torch.cat([cells, torch.tensor([-1e30, 1e30, -torch.inf, torch.inf])])
    bucket = torch.empty(len(cells), dtype=torch.int32)
    ranking._bucket_finder(windows)(windows.clamp(cells), out=bucket)
    expected = torch.bucketize(
        cells, windows.ends.masked_fill(windows.ends.isinf(), 2e38), right=True
    )
    expected = expected.clamp(max=2 * int(valid.sum()))
    assert_close(bucket.long(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("cell", [C + 1, 2 * C + 3], ids=["negative", "positive"])
def test_not_a_number_is_not_hidden(cell: int):
    scores, (positives, groups) = _scores("spread", torch.float32), _positives()
    scores.view(-1)[cell] = torch.nan
    errors, gradient = _with_gradient(scores, positives, torch.ones(9), groups)
    assert errors.isnan().any() and gradient.isnan().any()


def test_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch):
    # As on a GPU, where no grid is built.
    monkeypatch.setattr(one_pass, "looking_is_free", lambda tensor: False)
    scores, (positives, groups) = _scores("spread"), _positives()
    scores.requires_grad_()
    valid = torch.arange(9) > 2
    for options in ({}, {"exclude_positives": False}):
        with NoSynchronisation():
            ranking_errors(scores, positives, groups, valid, **options).sum().backward()
    with NoSynchronisation():
        ranking_errors(scores, positives, interpolate=True).sum().backward()


# ---- what is refused


def test_second_derivative_is_refused():
    scores, (positives, groups) = _scores("spread").requires_grad_(), _positives()
    factor = torch.ones(9, dtype=torch.float64, requires_grad=True)
    errors = ranking_errors(scores, positives, groups)
    (gradient,) = torch.autograd.grad(errors, scores, factor, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_bad_arguments_are_refused():
    scores, (positives, groups) = _scores("spread"), _positives()
    with pytest.raises(ValueError, match=r"expected scores of shape \(R, C\), got \(140,\)"):
        ranking_errors(scores.flatten(), positives)
    for delta in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="delta must be a finite number above 0"):
            ranking_errors(scores, positives, delta=delta)
    with pytest.raises(ValueError, match="leave groups out"):
        ranking_errors(scores, positives, groups, interpolate=True)


# ---- parity


def test_golden_ap_loss():
    golden = load_golden("ap_loss")
    num_columns = golden["logits"].shape[-1]
    for step, name in enumerate(golden["step_names"]):
        logits = torch.from_numpy(golden["logits"][step]).requires_grad_()
        targets = torch.from_numpy(golden["targets"][step]).view(-1, num_columns)
        scores = logits.view(-1, num_columns).masked_fill(targets < 0, -torch.inf)
        positives = (targets.flatten() == 1).nonzero().flatten()
        errors = ranking_errors(scores, positives, delta=float(golden["delta"]), interpolate=True)
        value = errors.sum() / max(len(positives), 1)
        (gradient,) = torch.autograd.grad(value, logits)
        expected = golden["grad"][step]
        scale = np.abs(expected).max() or 1.0
        compare("AP loss", f"ap_loss/{name}/loss", value, golden["loss"][step])
        compare("AP loss", f"ap_loss/{name}/grad", gradient / scale, expected / scale)
