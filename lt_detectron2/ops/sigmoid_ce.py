"""
Weighted binary cross entropies, one a column: value and gradient in one pass.

What differs between methods is which terms count how much. Almost always that depends on the column
and on whether the region is background, so it is told by tables and never written out as a matrix.

Shapes:

    R, L: rows and columns of the logits
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import one_pass
from .implementations import uses_triton
from .one_pass import (
    OnePass,
    attach_gradient,
    check_reduction,
    exp_of,
    row_blocks,
    rows_of,
    wants_gradient,
)

MAX_EXPONENT = 80.0
"""exp of it is finite in float32, and log(1 + exp(x)) is x from here on."""


class TermWeights(NamedTuple):
    """
    Weights w_ij >= 0 of the terms, constant in the gradient. What is None does not take part.

        w_ij = positive_j                                             j is the row's own column
        w_ij = negative_kj mask_ij [score_ij >= min_score_kj]         other columns

    k is 0 for a background row and 1 for a foreground row. Tables are of any floating type.
    """

    positive: Tensor | None = None
    """(L,)"""
    negative: Tensor | None = None
    """(L,), or (2, L) where background and foreground rows differ."""
    min_score: Tensor | None = None
    """(L,) or (2, L); 0 lets all terms count."""
    mask: Tensor | None = None
    """(R, L), of any type; the logits' is fastest. Costs a pass: prefer tables."""
    mask_row: Tensor | None = None
    """(R,) int64 row of the mask that holds for a region, then of any number; None for its own."""


class KernelTerms(NamedTuple):
    """Binary terms as the Triton kernel is told them; what a name does not use is ignored."""

    name: str
    """"sigmoid", "focal", "quality_focal", "gumbel" or "floored_gumbel"."""
    gamma: float | Tensor = 0.0
    """A number, or (L,)."""
    quality: Tensor | None = None
    """(R,)"""
    low: float = -math.inf
    high: float = math.inf
    """Range that logits are clamped to."""


class BinaryTerms(Protocol):
    """
    A binary loss of a logit x: what a term costs before it is weighted, and its derivative.

    An attribute ``kernel``, of :class:`KernelTerms`, says that the Triton kernel knows it, too.
    """

    def negative(self, x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """
        Score in [0, 1], loss and its derivative of (B, L) logits of a block of rows.

        ``out`` is memory for the derivative, which may be the score itself.
        """

    def positive(self, x: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its derivative of logits (R,) in the columns (R,) that rows belong to."""


class SigmoidTerms:
    """log(1 + exp(x)) for negatives, log(1 + exp(-x)) for positives; the score is sigmoid(x)."""

    kernel = KernelTerms("sigmoid")

    def negative(self, x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        score = torch.sigmoid(x, out=out)
        return score, softplus(x), score

    def positive(self, x: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        return softplus(-x), -(-x).sigmoid()


SIGMOID = SigmoidTerms()


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); faster on the CPU than torch's. Without a graph."""
    if one_pass.looking_is_free(x):
        value = exp_of(x).log1p_()
        if math.isfinite(value.sum().item()):  # the usual case; the sum is the cheapest to ask
            return value
    value = exp_of(x.clamp(max=MAX_EXPONENT)).log1p_()
    return torch.maximum(value, x, out=value)


def sigmoid_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weights: TermWeights | None = None,
    *,
    background: int,
    terms: BinaryTerms = SIGMOID,
    scale: float = 1.0,
    offset: Tensor | None = None,
    reduction: str = "none",
    class_gradients: bool = False,
    implementation: str = "auto",
) -> OnePass:
    """
    Sum over the columns of each row's weighted binary cross entropies.

        loss_i = sum_j w_ij BCE(scale z_ij + offset_kj, [t_i = j])

    Nothing is written to, no (R, L) matrix of labels or weights is made, and nothing waits for the
    device. Extra memory is the gradient and, on the CPU, a few blocks of rows.

    Args:
        logits: (R, L) float32 or float64, of any layout.
        targets: (R,) int64 >= 0. A row whose target is L or more has no positive term.
        weights: w_ij; None weights every term 1.
        background: rows with this target or a higher one are background (k = 0).
        terms: what takes the place of BCE.
        scale: above 0.
        offset: (L,) or (2, L), see TermWeights for the two rows.
        reduction: "none" for (R,) losses or "mean" for their mean, 0 if R = 0.
        class_gradients: also return the summed magnitudes of gradients, which accumulating methods
            want. They are those of the sum over the rows, whatever the reduction.
        implementation: one of ``IMPLEMENTATIONS``; "triton" also takes half precision.

    Raises:
        ValueError: unknown reduction or implementation, or one that cannot run here.
    """
    check_reduction(reduction)
    kernel = getattr(terms, "kernel", None)
    triton = uses_triton(implementation, logits, has_kernel=kernel is not None)
    if triton:
        from .sigmoid_ce_triton import value_and_gradient
    else:
        value_and_gradient = _value_and_gradient
    weights = weights or TermWeights()
    wants = wants_gradient(logits)
    with torch.no_grad():
        share = 1 / max(len(logits), 1) if reduction == "mean" else 1.0
        losses, gradient, sums = value_and_gradient(
            logits.detach(), targets, weights, background, kernel if triton else terms, scale,
            offset, share,
            wants or class_gradients, class_gradients,
        )  # fmt: skip
        loss = losses if reduction == "none" else losses.sum()
        positive, negative = (None, None) if sums is None else (part / share for part in sums)
    loss = attach_gradient(loss, logits, gradient if wants else None, triton=triton)
    return OnePass(loss, positive, negative)


def _value_and_gradient(
    logits: Tensor,
    targets: Tensor,
    weights: TermWeights,
    background: int,
    terms: BinaryTerms,
    scale: float,
    offset: Tensor | None,
    share: float,
    needs_gradient: bool,
    class_gradients: bool,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """(R,) losses times ``share``, their gradient, and (L,) sums of its magnitude."""
    rows, columns = logits.shape
    dtype = logits.dtype
    kind = (targets < background).long()
    has_own = (targets < columns)[:, None]  # (R, 1)
    own = targets.clamp(max=columns - 1)[:, None]  # (R, 1)
    negative = logits.new_ones(columns) if weights.negative is None else weights.negative
    negative = share * _table(negative, dtype)
    min_score = None if weights.min_score is None else _table(weights.min_score, dtype)
    offset = None if offset is None else _table(offset, dtype)

    own_x = scale * logits.gather(1, own)
    if offset is not None:
        own_x += offset[kind[:, None], own]
    own_x.masked_fill_(~has_own, 0)  # at infinity, weight 0 would not help
    value, own_slope = terms.positive(own_x[:, 0], own[:, 0])
    own_weight = share * has_own[:, 0].to(dtype)
    if weights.positive is not None:
        own_weight *= weights.positive.to(dtype)[own[:, 0]]
    losses = own_weight * value
    own_slope = (scale * own_weight * own_slope)[:, None]

    tables_only = min_score is None and weights.mask is None
    gradient = logits.new_empty(logits.shape) if needs_gradient else None
    negative_sum = logits.new_zeros(columns)
    for block in row_blocks(logits):
        x, block_kind, at_own = logits[block], kind[block], (1, own[block])
        if offset is not None:
            x = rows_of(offset, block_kind).add_(x, alpha=scale)
        elif scale != 1:
            x = scale * x
        part = gradient[block] if needs_gradient else None
        score, value, slope = terms.negative(x, out=part)
        weight = rows_of(negative, block_kind)
        if min_score is not None:
            # As numbers: operations on bool are several times slower on the CPU.
            least = rows_of(min_score, block_kind)
            weight *= torch.ge(score, least, out=least)
        if weights.mask is not None:
            mask, place = weights.mask, weights.mask_row
            weight *= mask[block] if place is None else rows_of(mask, place[block])
        value.scatter_(*at_own, value.gather(*at_own).masked_fill_(has_own[block], 0))
        if tables_only:
            both = negative @ value.t()  # (2, B); the other way round takes longer on the CPU
            losses[block] += both.gather(0, block_kind[None])[0]
        else:
            losses[block] += value.mul_(weight).sum(dim=1)
        if needs_gradient:
            torch.mul(slope, weight, out=part)
            if scale != 1:
                part *= scale
            others = part.gather(*at_own).masked_fill_(has_own[block], 0)
            if class_gradients:
                negative_sum += part.scatter_(*at_own, others).sum(dim=0)
            part.scatter_(*at_own, others.add_(own_slope[block]))
        del score, value, slope, weight, x  # so that the next block finds their memory in the cache
    if not class_gradients:
        return losses, gradient, None
    positive_sum = torch.zeros_like(negative_sum).scatter_add_(0, own[:, 0], own_slope[:, 0].abs())
    return losses, gradient, (positive_sum, negative_sum)


def _table(table: Tensor, dtype: torch.dtype) -> Tensor:
    """(L,) or (2, L) -> (2, L)."""
    return table.to(dtype).expand(2, -1)
