"""DropLoss (AAAI 2021, https://arxiv.org/abs/2104.06402)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import TermWeights
from ..statistics import ClassStatistics
from .distributed import all_reduce_sum
from .equalization import EqualizationLoss
from .sampling import DrawnRows

BACKGROUND_RULES = ("drop", "drop_all", "equalize", "keep")


class DropLoss(EqualizationLoss):
    """
    EQL that spares tail classes a random part of the background's negative terms, too.

        w_ij = 1 - D_ij (1 - y_ij)
        D_ij = T_j                  foreground region, as in EQL
        D_ij = T_j [u_ij > rho]     background region, u_ij drawn from U[0, 1)

    T_j is 1 for a tail class and rho is the share of tail classes among the foreground regions of
    this step and process: where the tail is under-represented, few of its background terms count.
    Without any foreground region rho is 1 and nothing is dropped, which is what the official code
    does there.

    Args:
        statistics: counts of the training set; T_j is read from its image counts.
        frequency_threshold: see EqualizationLoss. 0 gives plain sigmoid cross entropy.
        background_rule: what happens to the terms of background regions.
            "drop": as above, the released code.
            "drop_all": the paper's text, which also drops classes outside the tail, keeping them
            with probability 1 - rho.
            "equalize": the paper's own baseline BEQL, D_ij = T_j min(-log_b(p_ij), 1), where p is
            held constant. No code was released for it.
            "keep": D_ij = 0, which is EQL.
        background_base: b > 1 of "equalize"; the larger, the more terms remain.
        prior_probability: see SigmoidCrossEntropyLoss.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        frequency_threshold: float | None = None,
        background_rule: str = "drop",
        background_base: float = 10.0,
        prior_probability: float = 0.001,
    ):
        super().__init__(
            num_classes,
            statistics,
            frequency_threshold=frequency_threshold,
            prior_probability=prior_probability,
        )
        if background_rule not in BACKGROUND_RULES:
            raise ValueError(
                f"background_rule must be one of {BACKGROUND_RULES}, got {background_rule!r}"
            )
        if not 1 < background_base < math.inf:
            raise ValueError(f"background_base must be a number above 1, got {background_base}")
        self.background_rule = background_rule
        self.background_base = float(background_base)

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights:
        weights = super().term_weights(logits, targets)
        if self.background_rule == "keep":
            return weights
        # Read on background regions: elsewhere the tail's weight is 0, and the others' must be 1.
        if self.background_rule == "equalize":
            minus_log_score = -F.logsigmoid(logits.detach()) / math.log(self.background_base)
            return weights._replace(mask=1 - self.is_tail * minus_log_score.clamp(max=1))
        rows = DrawnRows.of(targets == self.num_classes)
        keeps = self._keep(self.uniform(logits.shape, rows.drawn), targets)
        return weights._replace(mask=rows.spare_others(keeps), mask_row=rows.place)

    def _keep(self, draws: Tensor, targets: Tensor) -> Tensor:
        """0 or 1 in place of the draws."""
        rho = tail_share(targets, self.is_tail).float()
        if self.background_rule == "drop":
            return draws.le_(torch.where(self.is_tail, rho, 1.0))
        has_foreground = (targets < self.num_classes).any()
        return draws.le_(torch.where(self.is_tail | ~has_foreground, rho, 1 - rho))


def tail_share(targets: Tensor, is_tail: Tensor, *, over_processes: bool = False) -> Tensor:
    """
    Share of the tail among the foreground regions of a step; 1 if there is none.

    Args:
        targets: (R,) classes, K for background.
        is_tail: (K,) bool.
        over_processes: count the regions of all processes; a collective.
    """
    foreground = (targets < len(is_tail)).sum().double()
    tail = F.pad(is_tail, (0, 1))[targets].sum().double()
    if over_processes:
        foreground, tail = all_reduce_sum(foreground, tail)
    return torch.where(foreground > 0, tail / foreground.clamp(min=1), 1.0)
