"""Triton kernel of :mod:`.one_pass`: the backward pass, which mostly has nothing to do."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, BLOCK = 16, 256
"""Tile of a program."""


def scale_rows_(gradient: Tensor, factor: Tensor) -> Tensor:
    """
    Multiply rows in place. Where the factor is 1, as it mostly is, nothing is read or written.

    Args:
        gradient: (R, L), contiguous.
        factor: scalar, or (R,).
    """
    rows, columns = gradient.shape
    if gradient.numel():
        programs = (triton.cdiv(rows, ROWS), triton.cdiv(columns, BLOCK))
        stride = factor.stride(0) if factor.dim() else 0
        with torch.cuda.device_of(gradient):
            _kernel[programs](gradient, factor, stride, rows, columns, ROWS=ROWS, BLOCK=BLOCK)
    return gradient


@triton.jit
def _kernel(
    gradient, factor, factor_stride, rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    scale = tl.load(factor + row * factor_stride, mask=row < rows, other=1).to(tl.float32)
    if tl.sum((scale != 1).to(tl.int32), axis=0) > 0:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        there = (row < rows)[:, None] & (column < columns)[None, :]
        at = gradient + row[:, None] * columns + column[None, :]
        value = tl.load(at, mask=there, other=0).to(tl.float32)
        tl.store(at, scale[:, None] * value, mask=there)
