"""Sampling of regions without leaving the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import one_pass

BELOW_DRAWS = 2.0**-50
"""Added up over all regions less than what float32 draws differ by, and still seen by float64."""


class DrawnRows(NamedTuple):
    """
    Rows of an (R, K) matrix of draws that only some regions have a use for.

    On the CPU all others share one row, so that less is drawn. Elsewhere telling how many they are
    would wait for the device, and each region has its own.
    """

    needs: Tensor
    """(R,) bool, whether a region has a use for draws."""
    drawn: Tensor | None
    """(1 + N,) regions: any one in the name of the others, then those that need it. None: all."""
    place: Tensor | None
    """(R,) where a region finds its row among those; None: each has its own."""

    @classmethod
    def of(cls, needs: Tensor) -> DrawnRows:
        """Args: needs: (R,) bool."""
        if not one_pass.looking_is_free(needs) or len(needs) == 0:
            return cls(needs, None, None)
        index = needs.nonzero()[:, 0]
        return cls(needs, torch.cat([index.new_zeros(1), index]), needs.cumsum(dim=0).mul_(needs))

    def spare_others(self, keeps: Tensor) -> Tensor:
        """Set what holds for the other regions to 1. Args: keeps: 0 or 1, of the drawn rows."""
        if self.place is None:
            return torch.maximum(keeps, (~self.needs)[:, None].to(keeps.dtype), out=keeps)
        keeps[0] = 1
        return keeps


def choose_regions(candidates: Tensor, quota: Tensor, draws: Tensor) -> Tensor:
    """
    Choose regions for several groups, each uniformly and without replacement.

    Args:
        candidates: (R, G) bool, the regions that may be chosen for each group.
        quota: (G,) how many to choose; all candidates where there are fewer.
        draws: (R, G) random numbers in [0, 1). The smallest of a column's candidates win, of equal
            ones the first.

    Returns:
        (R, G) bool.
    """
    draws = draws.double().masked_fill(~candidates, 2.0)
    index = torch.arange(len(draws), device=draws.device)[:, None]
    if one_pass.looking_is_free(draws) and len(draws) > 0:  # sorting takes a softmax's time
        draws += index * BELOW_DRAWS
        places = quota.clamp(1, len(draws)).long().tolist()
        last = [
            column.kthvalue(place).values for column, place in zip(draws.t().contiguous(), places)
        ]
        return candidates & (draws <= torch.stack(last)) & (quota >= 1)
    order = draws.argsort(dim=0, stable=True)
    return candidates & torch.zeros_like(candidates).scatter_(0, order, index < quota)
