"""Sums over processes, for losses that accumulate state while they train."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

_is_alone = False


def world_size() -> int:
    """Processes in the default group; 1 without one, so that every loss runs in one process."""
    if dist.is_available() and dist.is_initialized() and not _is_alone:
        return dist.get_world_size()
    return 1


@contextmanager
def without_others() -> Iterator[None]:
    """Within, this process sums alone: for what only one of several processes runs."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def all_reduce_sum(*tensors: Tensor) -> list[Tensor]:
    """
    Sum each tensor over all processes, in one collective.

    Every process must call it with the same shapes, also one that has no region in this step.

    Returns:
        The sums, float64: increments of 1e-2 must not vanish in totals of 1e6.
    """
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    if world_size() > 1:
        dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]
