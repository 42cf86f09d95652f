"""
Losses whose gradient is computed together with their value.

A loss that is the end of a graph knows its gradient in the forward pass, up to one factor.
Computing it there, block of rows after block of rows, reads the logits once and keeps intermediate
results in the cache; the backward pass only applies the factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CPU_BLOCK = 1 << 18
"""Logits worked on at a time at most, so that intermediate results stay in the cache."""
SMALL_CPU_BLOCK = 1 << 16
"""What is no larger is worked on at once; what is, in an eighth at most, to save memory."""
LOG2_E = math.log2(math.e)
REDUCTIONS = ("none", "mean")


class OnePass(NamedTuple):
    """What one pass over the logits gives."""

    loss: Tensor
    """(R,), or their mean; with a graph."""
    positive_gradient: Tensor | None = None
    """(L,) sum of |d loss_i / d z_ij| over rows i whose own column is j, if asked for."""
    negative_gradient: Tensor | None = None
    """(L,) the same over all other rows."""


def attach_gradient(
    losses: Tensor, logits: Tensor, gradient: Tensor | None, *, triton: bool = False
) -> Tensor:
    """
    Make a loss depend on its logits.

    Args:
        losses: scalar, or (R,) loss of each row. Without graph.
        logits: (R, L), from which the losses were computed.
        gradient: (R, L) derivative of the scalar, or of each row's loss by that row's logits. None
            if nobody wants it, see :func:`wants_gradient`.
        triton: let a Triton kernel apply the upstream factor, in place where that can be.

    Returns:
        The losses. Their graph can be run backwards any number of times, but differentiated once.
    """
    return losses if gradient is None else _Attached.apply(losses, logits, gradient, triton)


def wants_gradient(logits: Tensor) -> bool:
    """Whether a backward pass may follow."""
    return logits.requires_grad and torch.is_grad_enabled()


def looking_is_free(tensor: Tensor) -> bool:
    """
    Whether the host may look at values: nothing waits for a CPU, and no compiler is tracing.

    What depends on values is then skipped, e.g. rows of weight 0; elsewhere it is computed.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def exp_of(x: Tensor, factor: float = 1.0) -> Tensor:
    """
    exp(factor x), without a graph.

    By way of exp2, which takes a quarter of the time of exp on the CPU; rounding grows by |x|.
    """
    return (LOG2_E * factor * x).exp2_()


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of rows that fit into the cache together; a single one where that is no matter."""
    rows, columns = logits.shape
    if not looking_is_free(logits):
        yield slice(0, rows)  # not by the loop below, which is compiled anew for each R
        return
    block = min(CPU_BLOCK, max(SMALL_CPU_BLOCK, logits.numel() // 8))
    step = max(1, block // max(columns, 1))
    for first in range(0, max(rows, 1), step):
        yield slice(first, min(first + step, rows))


def rows_of(table: Tensor, row: Tensor) -> Tensor:
    """(B, L) rows of a table, one for each region; the caller may overwrite them."""
    rows = table.new_empty(len(row), table.shape[1])
    return torch.index_select(table, 0, row, out=rows)  # without out thrice as slow on the CPU


def check_reduction(reduction: str) -> None:
    """Raise ValueError for an unknown name."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: Tensor, logits: Tensor, gradient: Tensor, triton: bool) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.triton = triton
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None, None]:
        # Not once_differentiable, which is silent where the factor is a constant.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "this loss computes its gradient together with its value and can be differentiated "
                "once: call backward without create_graph, or write the loss with plain torch"
            )
        (gradient,) = ctx.saved_tensors
        if ctx.triton and not _graph_is_kept():
            from .one_pass_triton import scale_rows_  # imported where it runs

            return None, scale_rows_(gradient, upstream), None, None
        if upstream.dim() == 0 and not ctx.triton and looking_is_free(upstream) and upstream == 1:
            return None, gradient, None, None  # the usual case, which needs no pass over it
        factor = upstream if upstream.dim() == 0 else upstream[:, None]
        return None, (gradient * factor).to(gradient.dtype), None, None


def _graph_is_kept() -> bool:
    """
    Whether the backward pass that is running may run again, so that it must not write to what was
    saved.
    """
    # Private, and what torch.compile asks before it reuses saved memory.
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return ask()
