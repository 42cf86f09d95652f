"""
Error-driven ranking: how many negative cells of a score matrix stand above each positive cell.

A positive i is compared with every cell j through a step of finite slope,

    H(j|i) = clamp((s_j - s_i) / (2 delta) + 1/2, 0, 1)

so that its error needs sums of H over all cells, and a negative's gradient sums of H over all
positives. Written down directly that is P M comparisons, for 1,024 positives on LVIS 5e9. But H is
linear between s_i - delta and s_i + delta and constant elsewhere. The 2P ends of these windows cut
the line of scores into 2P + 1 buckets; the errors follow from the number and the mean of the cells
in each bucket, and the gradient is linear in the score within each bucket. Both are exact: two
passes over the cells, and O(P log P) for the rest.

Shapes:

    R, C: rows and columns of the scores; M = R C cells
    P: positives, placeholders included
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import one_pass

NO_ERROR = 1e-10
"""Sums of H up to here are rounding, as in the official code: the positive stands above all."""

GRID_BINS = 1 << 16
CPU_CHUNK = 1 << 16
"""Cells worked on at a time, so that intermediate results stay in the cache."""
GPU_CHUNK = 1 << 22


def ranking_errors(
    scores: Tensor,
    positives: Tensor,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    delta: float = 0.5,
    exclude_positives: bool = True,
    interpolate: bool = False,
) -> Tensor:
    """
    Share of negatives among what stands above each positive, with an error-driven gradient.

    With G(i) the positives of i's group and N the cells that are not positive,

        a_i = sum_{k in G(i)} H(k|i),   F_i = sum_{j in N} H(j|i),   e_i = F_i / (a_i + F_i)

    i itself counts H(i|i) = 1/2 in a_i. The derivative is set, not derived: the step of a
    perceptron, under which a positive rises by its error and the negatives above it share the fall,

        de_i/ds_i = -e_i,   de_i/ds_j = H(j|i) / (a_i + F_i)

    so that the entries of a gradient sum to 0. Nothing waits for the device. Everything but the two
    passes over the cells is computed in float64, the passes in float32 at least.

    Args:
        scores: (R, C) of any floating type and layout. Cells of -inf are ignored.
        positives: (P,) int64 index r C + c of each positive cell; no cell twice.
        groups: (P,) int64 >= 0, which positives are ranked together; None for all.
        valid: (P,) bool, False for placeholders: their cells stay negatives and their errors are
            0. It lets P be known without looking at the data. None for all True.
        delta: half the width of the step, in units of the scores.
        exclude_positives: leave positives of other groups out of the negatives of a group.
            Otherwise F_i counts them and they fall like negatives, on top of their own rise.
        interpolate: as AP loss does, add 1/2 to a_i, so that i itself counts 1, and lower e_i to
            the least error of the positives that score as low as i or lower. Needs one group.

    Returns:
        (P,) float64 errors in [0, 1]. They can be differentiated once.
    """
    if scores.ndim != 2:
        raise ValueError(f"expected scores of shape (R, C), got {tuple(scores.shape)}")
    if not 0 < delta < float("inf"):
        raise ValueError(f"delta must be a finite number above 0, got {delta}")
    if interpolate and groups is not None:
        raise ValueError("interpolation walks over all positives: leave groups out")
    if groups is None:
        groups = torch.zeros_like(positives)
    if valid is None:
        valid = torch.ones_like(positives, dtype=torch.bool)
    return _RankingErrors.apply(
        scores, positives, groups, valid, float(delta), exclude_positives, interpolate
    )


class _RankingErrors(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        positives: Tensor,
        groups: Tensor,
        valid: Tensor,
        delta: float,
        exclude_positives: bool,
        interpolate: bool,
    ) -> Tensor:
        ctx.delta, ctx.exclude_positives = delta, exclude_positives
        ctx.is_empty = scores.numel() == 0 or len(positives) == 0
        if ctx.is_empty:
            ctx.save_for_backward(scores)
            return scores.new_zeros(len(positives), dtype=torch.float64)
        own = _at_least_float32(scores.take(positives)).masked_fill(~valid, 0)
        windows = _Windows.around(own, valid, delta)
        buckets, missed = _count_above(scores, positives, own, valid, windows, delta)
        weights = valid.double()
        found = _sum_beaten(-own, groups, weights, delta)  # -s beats what s is beaten by
        if not exclude_positives:
            everyone = torch.zeros_like(groups)
            missed = missed + _sum_beaten(-own, everyone, weights, delta) - found
        if interpolate:
            found = found + 0.5
        total = (found + missed).masked_fill(~valid, 1)
        error = missed / total
        pull = error
        if interpolate:
            pull = _least_of_lower(error.masked_fill(~valid, torch.inf), own)
        has_no_error = ~valid | (missed <= NO_ERROR)
        pull = pull.masked_fill(has_no_error, 0)
        push = (pull / missed).masked_fill(has_no_error, 0)  # 1 / total, or interpolated
        ctx.save_for_backward(scores, positives, groups, valid, own, buckets, pull, push, *windows)
        return pull

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        unused = (None,) * 6
        scores, *saved = ctx.saved_tensors
        if ctx.is_empty:
            return torch.zeros_like(scores), *unused
        positives, groups, valid, own, buckets, pull, push = saved[:7]
        windows = _Windows(*saved[7:])
        upstream = upstream.double()
        push = upstream * push
        gradient = _share_of_cells(scores, buckets, windows, push, ctx.delta)
        at_positives = -upstream * pull
        if not ctx.exclude_positives:
            everyone = torch.zeros_like(groups)
            at_positives = at_positives + _sum_beaten(own, everyone, push, ctx.delta)
            at_positives = at_positives - _sum_beaten(own, groups, push, ctx.delta)
        flat = gradient.view(-1)
        kept = flat[positives]  # of placeholders
        flat[positives] = torch.where(valid, at_positives.to(flat.dtype), kept)
        return gradient, *unused


class _Windows(NamedTuple):
    """
    The 2P sorted ends of the positives' windows and the 2P + 1 buckets between them.

    Bucket b holds the scores with exactly b ends at or below them. Ends of placeholders lie at
    +inf, beyond all scores.
    """

    ends: Tensor
    """(2P,) ascending, in the scores' type."""
    owner: Tensor
    """(2P,) index of the positive whose window ends here."""
    sign: Tensor
    """(2P,) float64 1 where a window opens, -1 where one closes, 0 of a placeholder."""
    opens: Tensor
    """(P,) first bucket of each window."""
    closes: Tensor
    """(P,) first bucket above each window."""
    width: Tensor
    """(2P+1,) float64 of each bucket; 0 where no window is open, since H is constant there."""
    left: Tensor
    """(2P+1,) lower edge of each bucket."""
    low: Tensor
    """Scalar just below the first end: what is lower is not told apart."""
    high: Tensor
    """Scalar, the last end."""

    def clamp(self, scores: Tensor) -> Tensor:
        """Flat copy of scores, finite and in the type of the ends; no bucket changes."""
        return scores.to(self.ends.dtype).maximum(self.low).minimum(self.high).flatten()

    @classmethod
    def around(cls, own: Tensor, valid: Tensor, delta: float) -> _Windows:
        """The windows of half width ``delta`` around the scores (P,)."""
        num_positives = len(own)
        ends = torch.cat([own - delta, own + delta]).masked_fill(~valid.repeat(2), torch.inf)
        ends, order = ends.sort()
        owner = order % num_positives
        sign = torch.where(order < num_positives, 1.0, -1.0).double() * valid[owner]
        bucket = torch.empty_like(order)
        bucket[order] = torch.arange(1, 2 * num_positives + 1, device=own.device)
        # Without any valid positive every end is infinite; then 0 does as well as anything.
        low = ends[0].masked_fill(ends[0].isinf(), 0)
        low = torch.nextafter(low, torch.full_like(low, -torch.inf))
        high = ends.masked_fill(ends.isinf(), -torch.inf).amax().maximum(low)
        is_open = sign.cumsum(0)[:-1] > 0
        inner_width = ends.double().diff().where(is_open, 0)
        return cls(
            ends,
            owner,
            sign,
            bucket[:num_positives],
            bucket[num_positives:],
            F.pad(inner_width, (1, 1)),
            torch.cat([low[None], ends]),
            low,
            high,
        )


def _count_above(
    scores: Tensor,
    positives: Tensor,
    own: Tensor,
    valid: Tensor,
    windows: _Windows,
    delta: float,
) -> tuple[Tensor, Tensor]:
    """(M,) int32 bucket of each cell, and (P,) sum of H(j|i) over the cells j without positive."""
    buckets = torch.empty(scores.numel(), dtype=torch.int32, device=scores.device)
    count = torch.zeros_like(windows.width)
    total = torch.zeros_like(windows.width)
    one = torch.ones((), dtype=torch.float64, device=scores.device)
    find_buckets = _bucket_finder(windows)
    for rows, chunk in _chunks(scores):
        cells = windows.clamp(scores[rows])
        bucket = find_buckets(cells, out=buckets[chunk])
        count.index_add_(0, bucket, one.expand(len(bucket)))
        total.index_add_(0, bucket, cells.double())
    bucket = buckets[positives]
    count.index_add_(0, bucket, -valid.double())
    total.index_add_(0, bucket, -own.double() * valid)
    # Over the lower edge; where no window is open H is constant.
    excess = (total - count * windows.left).where(windows.width > 0, 0)
    # Sums run from the top, where well ranked positives have few cells above them, and over a line
    # of scores from which the gaps between windows are cut out: both keep them small.
    place = -_sum_from_top(windows.width)  # of the lower edges
    above = _sum_from_top(count)
    moment = _sum_from_top(count * place + excess)
    opens, closes = windows.opens, windows.closes
    inside = above[opens] - above[closes]
    height = moment[opens] - moment[closes] - place[opens] * inside  # over s_i - delta
    missed = (above[closes] + height / (2 * delta)).clamp(min=0)
    return buckets, missed + 0 * total.sum()  # a NaN lies in no window and must show all the same


def _share_of_cells(
    scores: Tensor, buckets: Tensor, windows: _Windows, push: Tensor, delta: float
) -> Tensor:
    """(R, C) sum of push_i H(j|i) over the positives i, in the scores' type."""
    steps = windows.sign * push[windows.owner]
    slope = F.pad(steps.cumsum(0), (1, 0)).where(windows.width > 0, 0) / (2 * delta)
    value = F.pad((slope * windows.width).cumsum(0)[:-1], (1, 0))  # at the lower edge
    slope, value = slope.to(windows.left.dtype), value.to(windows.left.dtype)
    share = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    flat = share.view(-1)
    for rows, chunk in _chunks(scores):
        bucket = buckets[chunk]
        cells = windows.clamp(scores[rows])
        cells -= windows.left.index_select(0, bucket)
        cells *= slope.index_select(0, bucket)
        torch.add(cells, value.index_select(0, bucket), out=flat[chunk])
    return share


def _sum_beaten(own: Tensor, groups: Tensor, weights: Tensor, delta: float) -> Tensor:
    """(P,) float64 sum of weights_k H(i|k) over the positives k of i's group."""
    own, num_positives = own.double(), len(own)
    ordered, order = own.sort()
    position = torch.empty_like(order)
    position[order] = torch.arange(num_positives, device=own.device)
    below = torch.searchsorted(ordered, own - delta, right=True)  # beaten by delta or more
    within = torch.searchsorted(ordered, own + delta)  # not by delta or more the higher
    # The same three bounds among the members of the group, which are sorted by (group, position).
    key, member = (groups * num_positives + position).sort()
    bounds = groups * num_positives + torch.stack([torch.zeros_like(below), below, within])
    first, below, within = torch.searchsorted(key, bounds)
    weight = F.pad(weights[member].cumsum(0), (1, 0))
    moment = F.pad((weights * own)[member].cumsum(0), (1, 0))
    inside = weight[within] - weight[below]
    margin = own * inside - (moment[within] - moment[below])
    return weight[below] - weight[first] + margin / (2 * delta) + inside / 2


def _least_of_lower(error: Tensor, own: Tensor) -> Tensor:
    """(P,) least error among the positives that score as low as each or lower."""
    order = own.argsort()
    least = torch.empty_like(error)
    least[order] = error[order].cummin(0).values
    return least


def _bucket_finder(windows: _Windows) -> Callable[..., Tensor]:
    """
    Return ``find(cells, out=...)``, which maps clamped scores (N,) to their int32 buckets.

    On the CPU a binary search over all ends would take most of the time. There a grid leads to the
    ends close by, of which there is hardly ever more than one to compare with. It is monotone,
    however its arithmetic is rounded, so that the comparisons have the last word.
    """
    ends = windows.ends
    if not one_pass.looking_is_free(ends):
        return functools.partial(_search, ends)
    low = windows.low
    scale = GRID_BINS / (windows.high - low)

    def find_bins(cells: Tensor) -> Tensor:
        return (cells - low).mul_(scale).int().clamp_(0, GRID_BINS + 1)  # also of NaN

    ends_in_bin = torch.zeros(GRID_BINS + 2, dtype=torch.int32)
    ends_in_bin.index_add_(0, find_bins(ends.minimum(windows.high)), ends.isfinite().int())
    first = (ends_in_bin.cumsum(0) - ends_in_bin).int()  # ends before each bin
    # The ends of a bin are searched by halving.
    steps = [1 << i for i in reversed(range(int(ends_in_bin.max()).bit_length()))]
    padded = F.pad(ends, (0, sum(steps)), value=torch.inf)

    def find_buckets(cells: Tensor, out: Tensor) -> Tensor:
        torch.index_select(first, 0, find_bins(cells), out=out)
        for step in steps:
            is_passed = padded[step - 1 :].index_select(0, out).le_(cells)
            out.add_(is_passed.int(), alpha=step)
        return out

    return find_buckets


def _search(ends: Tensor, cells: Tensor, out: Tensor) -> Tensor:
    return torch.bucketize(cells, ends, right=True, out_int32=True, out=out)


def _chunks(scores: Tensor) -> Iterator[tuple[slice, slice]]:
    """The same chunk of cells as a slice of rows and of the flat scores, chunk by chunk."""
    num_rows, num_columns = scores.shape
    cells = CPU_CHUNK if scores.device.type == "cpu" else GPU_CHUNK
    step = max(1, cells // num_columns)
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        yield slice(first, last), slice(first * num_columns, last * num_columns)


def _sum_from_top(values: Tensor) -> Tensor:
    return values.flip(0).cumsum(0).flip(0)


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
