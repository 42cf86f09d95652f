"""
Triton kernel of :mod:`.softmax_ce`.

A program holds a tile of whole rows in registers: it reads their logits once and writes their
gradient once. Rows of more than ``MAX_BLOCK`` columns are read block by block, once for the
normaliser and once for the gradient. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .softmax_ce import SoftmaxPart

MAX_BLOCK = 8192
"""Columns that a program holds at a time."""
TILE = 2048
"""Logits that a program holds at a time where rows are shorter."""
MAX_ROWS = 64
TILES_OF_SUMS = 8
"""Tiles that a program adds up before it stores sums of columns."""


def value_and_gradient(
    logits: Tensor,
    parts: Sequence[SoftmaxPart],
    share: float,
    needs_gradient: bool,
    class_gradients: bool,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """(R,) losses times ``share``, their gradient, and (L,) sums of its magnitude."""
    rows, columns = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    losses = logits.new_zeros(rows, dtype=torch.float32)
    positive, negative = losses.new_zeros(2, columns).unbind()
    gradient = None
    if needs_gradient:
        new = logits.new_empty if _cover(parts, columns) else logits.new_zeros
        gradient = new(rows, columns)
    for part in parts:
        span = slice(part.first, _end(part, columns))
        part_gradient = gradient[:, span] if needs_gradient else None
        pushes, pulls = _launch(
            logits[:, span], part, share, losses, part_gradient, class_gradients
        )
        if class_gradients:
            positive[span].scatter_add_(0, part.targets, pushes)
            negative[span] += pulls.sum(dim=0)
    return losses, gradient, (positive, negative) if class_gradients else None


def _end(part: SoftmaxPart, columns: int) -> int:
    return columns if part.size is None else part.first + part.size


def _cover(parts: Sequence[SoftmaxPart], columns: int) -> bool:
    """Whether every column belongs to a part, so that the kernel writes all of the gradient."""
    reached = 0
    for part in sorted(parts, key=lambda part: part.first):
        if part.first > reached:
            return False
        reached = _end(part, columns)
    return reached == columns


def _launch(
    z: Tensor,
    part: SoftmaxPart,
    share: float,
    losses: Tensor,
    gradient: Tensor | None,
    class_gradients: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """
    Add to the losses and write the gradient of one part.

    Returns:
        If class gradients are wanted: (R,) magnitudes in the rows' own columns, and (programs, C)
        partial sums of those in the others.
    """
    rows, columns = z.shape
    block = min(triton.next_power_of_2(columns), MAX_BLOCK)
    tile_rows = min(max(TILE // block, 1), MAX_ROWS)
    tiles = TILES_OF_SUMS if class_gradients else 1
    programs = triton.cdiv(rows, tile_rows * tiles)
    pushes = pulls = None
    if class_gradients:
        pushes, pulls = losses.new_empty(rows), losses.new_zeros(programs, columns)
    if not rows:
        return pushes, pulls
    shifts = part.shifts
    tables = (shifts.offset, shifts.own_offset, shifts.log_count, shifts.kept, shifts.kept_row)
    offset, own_offset, log_count, kept, kept_row = (
        None if table is None else table.contiguous() for table in tables
    )
    exponent, log_floor = shifts.compensation or (None, None)
    with torch.cuda.device_of(z):
        _kernel[(programs,)](
            z, z.stride(0),
            gradient, 0 if gradient is None else gradient.stride(0),
            losses, pushes, pulls,
            part.targets, part.targets.stride(0),
            part.weights, 0 if part.weights is None else part.weights.stride(0),
            offset, columns if offset is not None and offset.dim() == 2 else 0,
            own_offset, log_count, kept, kept_row,
            float(share), float(shifts.scale),
            None if exponent is None else float(exponent),
            None if log_floor is None else float(log_floor),
            rows, columns,
            ROWS=tile_rows, BLOCK=block, TILES=tiles, BLOCKS=triton.cdiv(columns, block),
            num_warps=4 if block <= 2048 else 16,
        )  # fmt: skip
    return pushes, pulls


@triton.jit
def _kernel(
    logits, row_stride,
    gradient, gradient_row_stride,
    losses, pushes, pulls,
    targets, target_stride,
    weights, weight_stride,
    offset, offset_row_stride,
    own_offset, log_count, kept, kept_row,
    share, scale, exponent, log_floor,
    rows, columns,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    start = tl.arange(0, BLOCK)
    pull_sums = tl.zeros([BLOCK], tl.float32)
    for tile in range(TILES):
        row = (program * TILES + tile) * ROWS + tl.arange(0, ROWS)
        exists = row < rows
        weight = tl.where(exists, share, 0.0)
        if weights is not None:
            weight *= tl.load(weights + row * weight_stride, mask=exists, other=0).to(tl.float32)
        active = weight != 0  # other rows are not read
        target = tl.load(targets + row * target_stride, mask=active, other=0)
        # Of what is no column nothing is read. Torch's operations would end the process.
        has_column = (target >= 0) & (target < columns)
        weight = tl.where(has_column, weight, float("nan"))
        own = tl.where(has_column, target, 0).to(tl.int32)
        z = logits + row * row_stride
        at_offset = offset
        if offset is not None:
            at_offset = offset + row * offset_row_stride
        at_kept = kept
        if kept is not None:
            place = row
            if kept_row is not None:
                place = tl.load(kept_row + row, mask=exists, other=0)
            at_kept = kept + place * columns

        own_scaled = scale * tl.load(z + own, mask=active, other=0).to(tl.float32)
        own_x = own_scaled
        if own_offset is not None:
            own_x += tl.load(own_offset + own, mask=active, other=0).to(tl.float32)
        elif offset is not None:
            own_x += tl.load(at_offset + own, mask=active, other=0).to(tl.float32)
        own_count = own_x
        if log_count is not None:
            own_count = tl.load(log_count + own, mask=active, other=0).to(tl.float32)

        # Greatest x of the row, and the other columns' sum of exp(x - greatest). Compensation
        # first needs the normaliser of what is not shifted.
        floor = own_scaled
        if BLOCKS == 1:
            inside = active[:, None] & (start < columns)[None, :]
            scaled = _scaled(z, start, inside, scale)
            if exponent is not None:
                greatest = tl.max(scaled, axis=1)
                greatest = tl.where(active, greatest, 0.0)
                total = tl.sum(tl.exp(scaled - greatest[:, None]), axis=1)
                total = tl.where(active, total, 1.0)
                floor = tl.maximum(own_scaled, greatest + tl.log(total) + log_floor)
            x = _shifted(
                scaled, start, inside, own, own_count, floor, at_offset, log_count, at_kept,
                exponent, columns,
            )  # fmt: skip
            greatest = tl.maximum(own_x, tl.max(x, axis=1))
            terms = tl.exp(x - greatest[:, None])
            others = tl.sum(terms, axis=1)
        else:
            if exponent is not None:
                greatest = own_scaled
                total = tl.zeros([ROWS], tl.float32)
                for block in range(BLOCKS):
                    column = block * BLOCK + start
                    inside = active[:, None] & (column < columns)[None, :]
                    scaled = _scaled(z, column, inside, scale)
                    greatest, total = _add_terms(scaled, greatest, total)
                total = tl.where(active, total, 1.0)
                floor = tl.maximum(own_scaled, greatest + tl.log(total) + log_floor)
            greatest = own_x
            others = tl.zeros([ROWS], tl.float32)
            for block in range(BLOCKS):
                column = block * BLOCK + start
                inside = active[:, None] & (column < columns)[None, :]
                scaled = _scaled(z, column, inside, scale)
                x = _shifted(
                    scaled, column, inside, own, own_count, floor, at_offset, log_count,
                    at_kept, exponent, columns,
                )  # fmt: skip
                greatest, others = _add_terms(x, greatest, others)
        total = others + tl.exp(own_x - greatest)
        loss = weight * ((greatest - own_x) + tl.log(total))
        tl.store(losses + row, tl.load(losses + row, mask=active) + loss, mask=active)

        if gradient is not None:
            factor = scale * weight / total
            push = factor * others
            if pushes is not None:
                tl.store(pushes + row, push, mask=exists)
            at_gradient = gradient + row * gradient_row_stride
            if BLOCKS == 1:
                pull = factor[:, None] * terms
                _store_slope(at_gradient, start, pull, push, own, exists, columns)
                if pulls is not None:
                    pull_sums += tl.sum(pull, axis=0)
            else:
                for block in range(BLOCKS):
                    column = block * BLOCK + start
                    inside = active[:, None] & (column < columns)[None, :]
                    scaled = _scaled(z, column, inside, scale)
                    x = _shifted(
                        scaled, column, inside, own, own_count, floor, at_offset, log_count,
                        at_kept, exponent, columns,
                    )  # fmt: skip
                    pull = factor[:, None] * tl.exp(x - greatest[:, None])
                    _store_slope(at_gradient, column, pull, push, own, exists, columns)
                    if pulls is not None:
                        at_sum = pulls + program * columns + column
                        pull_sum = tl.load(at_sum, mask=column < columns) + tl.sum(pull, axis=0)
                        tl.store(at_sum, pull_sum, mask=column < columns)
    if pulls is not None:
        if BLOCKS == 1:
            tl.store(pulls + program * columns + start, pull_sums, mask=start < columns)


@triton.jit
def _scaled(z, column, inside, scale):
    """(ROWS, BLOCK) scaled logits; -inf where there is none."""
    loaded = tl.load(z[:, None] + column[None, :], mask=inside, other=0).to(tl.float32)
    return tl.where(inside, scale * loaded, -float("inf"))


@triton.jit
def _shifted(
    scaled, column, inside, own, own_count, floor, at_offset, log_count, at_kept, exponent, columns
):  # fmt: skip
    """(ROWS, BLOCK) what enters the softmax; -inf in the rows' own columns."""
    x = scaled
    if at_offset is not None:
        x += tl.load(at_offset[:, None] + column[None, :], mask=inside, other=0).to(tl.float32)
    if log_count is not None:
        count = tl.load(log_count + column, mask=column < columns, other=0).to(tl.float32)
        x += tl.minimum(count[None, :] - own_count[:, None], 0.0)
    if exponent is not None:
        x += exponent * tl.maximum(scaled - floor[:, None], 0.0)
    counts = own[:, None] != column[None, :]
    if at_kept is not None:
        loaded = tl.load(at_kept[:, None] + column[None, :], mask=inside, other=0)
        counts &= loaded.to(tl.float32) != 0
    return tl.where(counts, x, -float("inf"))


@triton.jit
def _add_terms(x, greatest, total):
    """Greatest x so far, and the sum of exp(x - greatest) so far."""
    higher = tl.maximum(greatest, tl.max(x, axis=1))
    terms = tl.sum(tl.exp(x - higher[:, None]), axis=1)
    return higher, total * tl.exp(greatest - higher) + terms


@triton.jit
def _store_slope(at_gradient, column, pull, push, own, exists, columns):
    slope = tl.where(own[:, None] == column[None, :], -push[:, None], pull)
    mask = exists[:, None] & (column < columns)[None, :]
    tl.store(at_gradient[:, None] + column[None, :], slope, mask=mask)
