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
    order = draws.masked_fill(~candidates, 2.0).argsort(dim=0)
    places = torch.arange(len(order), device=order.device)[:, None] < quota
    return candidates & torch.zeros_like(candidates).scatter_(0, order, places)
