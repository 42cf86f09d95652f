"""Sampling of regions without leaving the device."""

import torch
from torch import Tensor


def choose_regions(candidates: Tensor, quota: Tensor, draws: Tensor) -> Tensor:
    """
    Choose regions for several groups, each uniformly and without replacement.

    Args:
        candidates: (R, G) bool, the regions that may be chosen for each group.
        quota: (G,) how many to choose; all candidates where there are fewer.
        draws: (R, G) random numbers in [0, 1). The smallest of a column's candidates win.

    Returns:
        (R, G) bool.
    """
    rank = draws.masked_fill(~candidates, 2.0).argsort(dim=0).argsort(dim=0)
    return candidates & (rank < quota)


def spread(mask: Tensor, columns: Tensor, num_columns: int) -> Tensor:
    """(R, C) bool that is ``mask`` (R, T) in the columns (T,) and True in all others."""
    everywhere = torch.ones(len(mask), num_columns, dtype=torch.bool, device=mask.device)
    return everywhere.index_copy_(1, columns, mask)
