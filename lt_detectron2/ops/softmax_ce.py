"""
Softmax cross entropies of shifted logits: value and gradient in one pass.

A classifier's columns may hold one softmax or several side by side, each with labels and weights of
its own. What methods add to the logits is told by tables and never written out as a matrix.

Shapes:

    R, L: rows and columns of the logits
    C:    columns of one softmax
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import one_pass
from .implementations import uses_triton
from .one_pass import (
    OnePass,
    attach_gradient,
    check_reduction,
    row_blocks,
    rows_of,
    wants_gradient,
)

LEAST_SCORE = 1e-30
"""Down to here a score has all its digits, and so has its logarithm."""
LEFT_OUT = 1e30
"""Whose negative is far below all logits: its exponential is 0."""


class Compensation(NamedTuple):
    """Raises columns that score higher than the row's own, see :class:`LogitShifts`."""

    exponent: float
    """q"""
    log_floor: float
    """log of the least probability that the own column is taken to have."""


class LogitShifts(NamedTuple):
    """
    What enters the softmax instead of logits z_ij, constant in the gradient but for the scale.

        x_it = scale z_it + own_offset_t                                the row's own column t = t_i
        x_ij = scale z_ij + offset_j + min(0, log_count_j - log_count_t)
               + q max(0, log s_ij - max(log s_it, log_floor))          other columns

    with s = softmax(scale z). What is None does not take part; without own_offset the offset holds
    for the own column, too, which is never left out. Tables are of any floating type.
    """

    scale: float = 1.0
    offset: Tensor | None = None
    """(C,), or (R, C), which costs a pass: prefer a table. -inf leaves a column out."""
    own_offset: Tensor | None = None
    """(C,)"""
    log_count: Tensor | None = None
    """(C,), times the exponent p: Seesaw's mitigation."""
    compensation: Compensation | None = None
    kept: Tensor | None = None
    """(R, C) 0 or 1, of any type; the logits' is fastest. 0 leaves a column out of a row."""
    kept_row: Tensor | None = None
    """(R,) int64 row of ``kept`` that holds for a region, then of any number; None for its own."""

    @property
    def moves_columns_apart(self) -> bool:
        """Whether the own column is shifted otherwise than the same column of other rows."""
        own = (self.own_offset, self.log_count, self.compensation, self.kept)
        return any(item is not None for item in own)


class SoftmaxPart(NamedTuple):
    """One softmax among the columns of a classifier."""

    targets: Tensor
    """(R,) int64 in 0..C-1, counted from the first of its columns."""
    weights: Tensor | None = None
    """(R,) factor of each row's loss, constant; None for 1. A row of weight 0 is skipped."""
    first: int = 0
    """Its first column."""
    size: int | None = None
    """C; None for all columns from the first on."""
    shifts: LogitShifts = LogitShifts()


def softmax_cross_entropy(
    logits: Tensor,
    *parts: SoftmaxPart,
    reduction: str = "none",
    class_gradients: bool = False,
    implementation: str = "auto",
) -> OnePass:
    """
    Sum over the parts of each row's softmax cross entropy.

        loss_i = sum_parts w_i CE(x_i, t_i)

    Nothing is written to, no (R, L) matrix of labels is made, and nothing waits for the device.
    Extra memory is the gradient and, on the CPU, a few blocks of rows. There only rows with a
    weight are computed at all.

    Args:
        logits: (R, L) float32 or float64, of any layout.
        parts: at least one; columns of no part have no gradient.
        reduction: "none" for (R,) losses or "mean" for their mean, 0 if R = 0.
        class_gradients: also return the summed magnitudes of gradients, which accumulating methods
            want. They are those of the sum over the rows, whatever the reduction.
        implementation: one of ``IMPLEMENTATIONS``; "triton" also takes half precision.

    Raises:
        ValueError: unknown reduction or implementation, or one that cannot run here.
    """
    check_reduction(reduction)
    triton = uses_triton(implementation, logits)
    if triton:
        from .softmax_ce_triton import value_and_gradient
    else:
        value_and_gradient = _value_and_gradient
    wants = wants_gradient(logits)
    with torch.no_grad():
        share = 1 / max(len(logits), 1) if reduction == "mean" else 1.0
        losses, gradient, sums = value_and_gradient(
            logits.detach(), parts, share, wants or class_gradients, class_gradients
        )
        loss = losses if reduction == "none" else losses.sum()
        positive, negative = (None, None) if sums is None else (part / share for part in sums)
    loss = attach_gradient(loss, logits, gradient if wants else None, triton=triton)
    return OnePass(loss, positive, negative)


def _value_and_gradient(
    logits: Tensor,
    parts: Sequence[SoftmaxPart],
    share: float,
    needs_gradient: bool,
    class_gradients: bool,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """(R,) losses times ``share``, their gradient, and (L,) sums of its magnitude."""
    losses = logits.new_zeros(len(logits))
    gradient = _gradient_of(logits, parts) if needs_gradient else None
    positive, negative = logits.new_zeros(2, logits.shape[1]).unbind()
    for part in parts:
        last = logits.shape[1] if part.size is None else part.first + part.size
        columns = slice(part.first, last)
        z = logits[:, columns]
        weights = logits.new_ones(len(logits)) if part.weights is None else part.weights
        weights = share * weights.to(logits.dtype)
        own = part.targets[:, None]
        part_gradient = gradient[:, columns] if needs_gradient else None
        active = _active_rows(z, part.weights)
        for block in row_blocks(z if active is None else z[: len(active)]):
            block = block if active is None else active[block]
            own_column, weight = own[block], weights[block, None]
            x = _shifted(_rows(z, block), part.shifts, block, own_column)
            scores = x.softmax(dim=1)
            losses[block] += weight[:, 0] * _cross_entropy(x, scores, own_column)
            if needs_gradient:
                factor = part.shifts.scale * weight
                pull = scores.mul_(factor)
                push = factor - pull.gather(1, own_column)
                if class_gradients:
                    positive[columns].scatter_add_(0, own_column[:, 0], push[:, 0])
                    negative[columns] += pull.scatter_(1, own_column, 0).sum(dim=0)
                part_gradient[block] = pull.scatter_(1, own_column, -push)
    return losses, gradient, (positive, negative) if class_gradients else None


def _gradient_of(logits: Tensor, parts: Sequence[SoftmaxPart]) -> Tensor:
    """(R, L) to be filled in by the parts; zeros where they may leave out rows or columns."""
    sizes = [logits.shape[1] - part.first if part.size is None else part.size for part in parts]
    leaves_out = one_pass.looking_is_free(logits) and any(p.weights is not None for p in parts)
    is_filled = sum(sizes) == logits.shape[1] and not leaves_out
    return (torch.empty_like if is_filled else torch.zeros_like)(logits)


def _active_rows(z: Tensor, weights: Tensor | None) -> Tensor | None:
    """Indices of the rows that have a weight; None computes all of them."""
    if weights is None or not one_pass.looking_is_free(z):
        return None
    is_active = weights != 0
    return None if is_active.all() else is_active.nonzero()[:, 0]


def _rows(z: Tensor, block: slice | Tensor) -> Tensor:
    return z[block] if isinstance(block, slice) else z.index_select(0, block)


def _shifted(z: Tensor, shifts: LogitShifts, block: slice | Tensor, own: Tensor) -> Tensor:
    """(B, C) what enters the softmax of the rows of a block; may be ``z`` itself."""
    scaled = z if shifts.scale == 1 else shifts.scale * z
    x = scaled
    if shifts.offset is not None:
        offset = shifts.offset if shifts.offset.dim() == 1 else shifts.offset[block]
        x = x + offset.to(z.dtype)
    own_x = x.gather(1, own) if shifts.moves_columns_apart else None
    if shifts.own_offset is not None:
        own_x = scaled.gather(1, own) + shifts.own_offset.to(z.dtype)[own]
    if shifts.log_count is not None:
        log_count = shifts.log_count.to(z.dtype)
        x = (log_count - log_count[own]).clamp_(max=0).add_(x)
    if shifts.compensation is not None:
        exponent, log_floor = shifts.compensation
        normalizer = _log_normalizer(scaled, scaled.softmax(dim=1))[:, None]
        floor = scaled.gather(1, own).maximum(normalizer + log_floor)
        x = torch.add(x, (scaled - floor).clamp_(min=0), alpha=exponent)
    if shifts.kept is not None:
        # Not -inf, which would have to be filled in by a mask of bool, slow on the CPU.
        kept = shifts.kept
        kept = kept[block] if shifts.kept_row is None else rows_of(kept, shifts.kept_row[block])
        x = torch.add(x, kept.to(z.dtype) - 1, alpha=LEFT_OUT)
    return x if own_x is None else x.scatter(1, own, own_x)


def _cross_entropy(x: Tensor, scores: Tensor, own: Tensor) -> Tensor:
    """(B,) -log softmax(x) in the columns (B, 1), given softmax(x)."""
    own_score = scores.gather(1, own)[:, 0]
    if one_pass.looking_is_free(x) and (own_score > LEAST_SCORE).all():  # the usual case
        return own_score.log_().neg_()
    return _log_normalizer(x, scores) - x.gather(1, own)[:, 0]


def _log_normalizer(x: Tensor, scores: Tensor) -> Tensor:
    """(B,) log sum_j exp(x_j), given softmax(x): the greatest entries tell it without rounding."""
    return x.amax(dim=1) - scores.amax(dim=1).log()
