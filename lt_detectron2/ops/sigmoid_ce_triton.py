"""
Triton kernel of :mod:`.sigmoid_ce`.

A program works down a strip of columns: their tables stay in registers, each logit is read once and
its gradient written once. Everything is computed in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sigmoid_ce import KernelTerms, TermWeights

MAX_BLOCK = 256
"""Columns of a strip."""
TILE = 1024
"""Logits that a program holds at a time."""
MAX_ROWS = 64
TILES = 8
"""Tiles of a program, one below the other."""


def value_and_gradient(
    logits: Tensor,
    targets: Tensor,
    weights: TermWeights,
    background: int,
    terms: KernelTerms,
    scale: float,
    offset: Tensor | None,
    share: float,
    needs_gradient: bool,
    class_gradients: bool,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """(R,) losses times ``share``, their gradient, and (L,) sums of its magnitude."""
    rows, columns = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    block = min(triton.next_power_of_2(columns), MAX_BLOCK)
    tile_rows = min(TILE // block, MAX_ROWS)
    strips, programs = triton.cdiv(columns, block), triton.cdiv(rows, tile_rows * TILES)
    losses = logits.new_empty(strips, rows, dtype=torch.float32)
    gradient = logits.new_empty(rows, columns) if needs_gradient else None
    own_slopes = negative_sums = None
    if class_gradients:
        own_slopes, negative_sums = losses.new_zeros(rows), losses.new_empty(programs, columns)
    if rows:
        with torch.cuda.device_of(logits):
            _kernel[(programs, strips)](
                logits, logits.stride(0), gradient,
                losses, own_slopes, negative_sums,
                targets, targets.stride(0),
                None if weights.positive is None else weights.positive.contiguous(),
                *_table(weights.negative), *_table(weights.min_score), *_table(offset),
                None if weights.mask is None else weights.mask.contiguous(),
                None if weights.mask_row is None else weights.mask_row.contiguous(),
                *_gamma(terms), None if terms.quality is None else terms.quality.contiguous(),
                float(terms.low), float(terms.high),
                background, float(share), float(scale), rows, columns,
                TERMS=terms.name, ROWS=tile_rows, BLOCK=block, TILES=TILES,
            )  # fmt: skip
    if class_gradients:
        own = targets.clamp(max=columns - 1)
        positive_sum = losses.new_zeros(columns).scatter_add_(0, own, own_slopes)
        sums = (positive_sum, negative_sums.sum(dim=0))
    losses = losses[0] if strips == 1 else losses.sum(dim=0)
    return losses, gradient, sums if class_gradients else None


def _table(table: Tensor | None) -> tuple[Tensor | None, int]:
    """An (L,) or (2, L) table and the distance of its rows."""
    if table is None:
        return None, 0
    return table.contiguous(), table.shape[1] if table.dim() == 2 else 0


def _gamma(terms: KernelTerms) -> tuple[Tensor | None, float]:
    """gamma of each column, or of all."""
    if isinstance(terms.gamma, Tensor):
        return terms.gamma.contiguous(), 0.0
    return None, float(terms.gamma)


@triton.jit
def _kernel(
    logits, row_stride, gradient,
    losses, own_slopes, negative_sums,
    targets, target_stride,
    positive,
    negative, negative_stride,
    min_score, min_score_stride,
    offset, offset_stride,
    mask, mask_row,
    gamma_table, gamma_of_all, quality,
    low, high,
    background, share, scale, rows, columns,
    TERMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    program, strip = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = strip * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    # Tables, first for background and then for foreground rows.
    weight_0, weight_1 = _both_rows(negative, negative_stride, column, inside, 1.0)
    score_0, score_1 = _both_rows(min_score, min_score_stride, column, inside, 0.0)
    offset_0, offset_1 = _both_rows(offset, offset_stride, column, inside, 0.0)
    gamma = tl.full([BLOCK], gamma_of_all, tl.float32)
    if gamma_table is not None:
        gamma = tl.load(gamma_table + column, mask=inside, other=0).to(tl.float32)
    negative_sum = tl.zeros([BLOCK], tl.float32)

    for tile in range(TILES):
        row = (program * TILES + tile) * ROWS + tl.arange(0, ROWS)
        exists = row < rows
        target = tl.load(targets + row * target_stride, mask=exists, other=0)
        is_foreground = target < background
        # Not in this strip where the target has no column.
        own_here = exists & (target >= strip * BLOCK) & (target < columns)
        own_here &= target < strip * BLOCK + BLOCK
        own = tl.where(own_here, target, 0)
        z = logits + row * row_stride

        # The terms of the rows' own columns.
        x = scale * tl.load(z + own, mask=own_here, other=0).to(tl.float32)
        if offset is not None:
            at_offset = offset + tl.where(is_foreground, offset_stride, 0) + own
            x += tl.load(at_offset, mask=own_here, other=0).to(tl.float32)
        own_gamma = tl.full([ROWS], gamma_of_all, tl.float32)
        if gamma_table is not None:
            own_gamma = tl.load(gamma_table + own, mask=own_here, other=1).to(tl.float32)
        own_quality = tl.full([ROWS], 1.0, tl.float32)
        if quality is not None:
            own_quality = tl.load(quality + row, mask=own_here, other=1).to(tl.float32)
        own_value, own_slope = _positive(x, own_gamma, own_quality, low, high, TERMS)
        own_weight = tl.where(own_here, share, 0.0)
        if positive is not None:
            own_weight *= tl.load(positive + own, mask=own_here, other=0).to(tl.float32)
        own_slope *= scale * own_weight

        # All other terms.
        at = row[:, None] * row_stride + column[None, :]
        there = exists[:, None] & inside[None, :]
        x = scale * tl.load(logits + at, mask=there, other=0).to(tl.float32)
        if offset is not None:
            x += tl.where(is_foreground[:, None], offset_1[None, :], offset_0[None, :])
        is_own = (target[:, None] == column[None, :]) & own_here[:, None]
        x = tl.where(is_own, 0.0, x)  # at infinity, weight 0 would not help
        score, value, slope = _negative(x, gamma[None, :], low, high, TERMS)
        weight = tl.where(is_foreground[:, None], weight_1[None, :], weight_0[None, :])
        if min_score is not None:
            least = tl.where(is_foreground[:, None], score_1[None, :], score_0[None, :])
            weight = tl.where(score >= least, weight, 0.0)
        if mask is not None:
            place = row
            if mask_row is not None:
                place = tl.load(mask_row + row, mask=exists, other=0)
            at_mask = mask + place[:, None] * columns + column[None, :]
            weight *= tl.load(at_mask, mask=there, other=0).to(tl.float32)
        weight = tl.where(there & (is_own == 0), share * weight, 0.0)

        loss = tl.sum(weight * value, axis=1) + own_weight * own_value
        tl.store(losses + strip.to(tl.int64) * rows + row, loss, mask=exists)
        slope *= scale * weight
        if gradient is not None:
            at_gradient = gradient + row[:, None] * columns + column[None, :]
            tl.store(at_gradient, tl.where(is_own, own_slope[:, None], slope), mask=there)
        if negative_sums is not None:
            negative_sum += tl.sum(slope, axis=0)
            tl.store(own_slopes + row, tl.abs(own_slope), mask=own_here)
    if negative_sums is not None:
        tl.store(negative_sums + program * columns + column, negative_sum, mask=inside)


@triton.jit
def _both_rows(table, stride, column, inside, default):
    """(BLOCK,) entries for background and for foreground rows."""
    first = tl.full(column.shape, default, tl.float32)
    second = first
    if table is not None:
        first = tl.load(table + column, mask=inside, other=0).to(tl.float32)
        second = tl.load(table + stride + column, mask=inside, other=0).to(tl.float32)
    return first, second


# ---- terms, as in the classes of the same names


@triton.jit
def _negative(x, gamma, low, high, TERMS: tl.constexpr):
    """Score, loss and its derivative of a negative."""
    if TERMS == "gumbel" or TERMS == "floored_gumbel":
        outside = (x < low) | (x > high)
        e = tl.exp(-_clamp(x, low, high))
        score = tl.exp(-e)
        odds = score / (1 - score) if TERMS == "floored_gumbel" else score / _one_minus_exp(e)
        value = _log1p(tl.minimum(odds, 1 / odds)) + tl.log(tl.maximum(odds, 1.0))
        slope = tl.where(outside, 0.0, e * odds)
    else:
        score, complement, entropy, log_score = _sigmoid(x)
        value, slope = entropy, score
        if TERMS != "sigmoid":
            modulation = tl.exp(gamma * log_score)
            value = modulation * entropy
            slope = modulation * (score + gamma * complement * entropy)
    return score, value, slope


@triton.jit
def _positive(x, gamma, quality, low, high, TERMS: tl.constexpr):
    """Loss and its derivative of a positive."""
    if TERMS == "gumbel" or TERMS == "floored_gumbel":
        outside = (x < low) | (x > high)
        value = tl.exp(-_clamp(x, low, high))
        slope = -value
        if TERMS == "floored_gumbel":
            score = tl.exp(-value)
            variance = score * (1 - score)
            slope *= variance / tl.maximum(variance, 1e-12)
        slope = tl.where(outside, 0.0, slope)
    elif TERMS == "quality_focal":
        score, complement, entropy, log_score = _sigmoid(x)
        entropy = (1 - quality) * x - log_score
        excess = score - quality
        log_distance = tl.log(tl.maximum(tl.abs(excess), 1.2e-38))
        value = tl.exp(gamma * log_distance) * entropy
        slope = gamma * score * complement * entropy + excess * excess
        slope *= tl.where(excess > 0, 1.0, -1.0) * tl.exp((gamma - 1) * log_distance)
        slope = tl.where(excess == 0, 0.0, slope)
    else:
        score, value, slope = _negative(-x, gamma, low, high, TERMS)
        slope = -slope
    return value, slope


@triton.jit
def _clamp(x, low, high):
    """x in [low, high]; NaN stays NaN, as what looks for damage needs it."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _sigmoid(x):
    """sigmoid(x), sigmoid(-x), log(1 + exp(x)) and log sigmoid(x), without cancellation."""
    e = tl.exp(-tl.abs(x))
    larger = 1 / (1 + e)
    smaller = e * larger
    rest = _log1p(e)
    return (
        tl.where(x > 0, larger, smaller),
        tl.where(x > 0, smaller, larger),
        tl.maximum(x, 0.0) + rest,
        tl.minimum(x, 0.0) - rest,
    )


@triton.jit
def _log1p(x):
    """log(1 + x) of x in [0, 1], which is 2 artanh(x / (2 + x)), as a power series."""
    y = x / (2 + x)
    square = y * y
    series = 1.0 / 15
    series = series * square + 1.0 / 13
    series = series * square + 1.0 / 11
    series = series * square + 1.0 / 9
    series = series * square + 1.0 / 7
    series = series * square + 1.0 / 5
    series = series * square + 1.0 / 3
    series = series * square + 1.0
    return 2 * y * series


@triton.jit
def _one_minus_exp(x):
    """1 - exp(-x) of x >= 0, without cancellation."""
    series = 1.0 - x * (1.0 / 7)
    series = 1.0 - x * (1.0 / 6) * series
    series = 1.0 - x * (1.0 / 5) * series
    series = 1.0 - x * (1.0 / 4) * series
    series = 1.0 - x * (1.0 / 3) * series
    series = 1.0 - x * (1.0 / 2) * series
    return tl.where(x < 0.25, x * series, 1.0 - tl.exp(-x))
