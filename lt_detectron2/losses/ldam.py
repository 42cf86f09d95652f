"""Label-distribution-aware margin loss, "LDAM" (NeurIPS 2019, https://arxiv.org/abs/1906.07413)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import LogitShifts
from ..statistics import ClassStatistics
from .base import check_non_negative, check_statistics
from .cross_entropy import SoftmaxCrossEntropyLoss
from .reweighted_softmax import rarity_weights


class LDAMLoss(SoftmaxCrossEntropyLoss):
    """
    Softmax cross entropy with a margin that grows as a class gets rarer.

        loss_i = CE(s (z_i - m_t onehot(t)), t)
        m_j = max_margin N_j^(-1/4) / max_k N_k^(-1/4),   m_background = 0           (Eq. 13)

    Meant for logits that are cosines, in [-1, 1]; with an ordinary linear classifier set ``scale``
    to 1. "LDAM-DRW" also weights regions by the effective number of their class, late in training;
    the sum stays divided by the number of regions, where the official code divides by the sum of
    weights.

    Args:
        statistics: counts of the training set; N_j is read from its instance counts. A class
            without an object has the margin of a class with one.
        max_margin: margin of the rarest class; 0 leaves softmax cross entropy of scaled logits.
        scale: s, factor of the logits, at test time as well.
        reweight_from_step: training steps after which deferred re-weighting sets in; the official
            code does so at 80 % of its schedule. A step in n micro-batches counts n times. None
            never re-weights.
        effective_number_beta: beta of the deferred weights, see ReweightedSoftmaxLoss.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_from_step: int | None = None,
        effective_number_beta: float = 0.9999,
    ):
        super().__init__(num_classes)
        counts = check_statistics(statistics, num_classes).instance_count.double()
        self.max_margin = check_non_negative("max_margin", max_margin)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be a finite number above 0, got {scale}: LDAM uses 30")
        self.scale = float(scale)
        if reweight_from_step is not None:
            check_non_negative("reweight_from_step", reweight_from_step)
        self.reweight_from_step = reweight_from_step
        margin = counts.clamp(min=1) ** -0.25
        margin = F.pad(self.max_margin * margin / margin.max(), (0, 1))
        late_weights = F.pad(rarity_weights(counts, effective_number_beta), (0, 1), value=1.0)
        self.register_buffer("margin", margin, persistent=False)  # (K+1,)
        self.register_buffer("late_weights", late_weights, persistent=False)  # (K+1,)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    @property
    def class_weights(self) -> Tensor | None:
        if self.reweight_from_step is None:
            return None
        is_late = self.num_steps >= self.reweight_from_step
        return torch.where(is_late, self.late_weights, 1.0)

    def logit_shifts(self, logits: Tensor, targets: Tensor) -> LogitShifts:
        if self.is_accumulating:
            self.num_steps += 1
        return LogitShifts(self.scale, own_offset=-self.scale * self.margin)

    def activation(self, logits: Tensor) -> Tensor:
        return super().activation(self.scale * logits)
