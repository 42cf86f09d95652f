"""Seesaw loss (CVPR 2021, https://arxiv.org/abs/2008.10032)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import LogitShifts, SoftmaxPart, softmax_cross_entropy
from ..ops.softmax_ce import Compensation
from .base import ClassificationLoss, check_non_negative, check_probability


class SeesawLoss(ClassificationLoss):
    """
    Softmax over the classes whose negatives are damped by frequency and raised by confusion.

    For a foreground region of class i, with N_j the regions of class j seen in training so far
    (this step included) and s = softmax(z) held constant,

        loss_i = -log( exp(z_i) / sum_j S_ij exp(z_j) ),   S_ij = M_ij C_ij,  S_ii = 1   (Eq. 3, 4)
        M_ij = min(1, N_j / N_i)^p                          mitigation                   (Eq. 5, 6)
        C_ij = max(1, s_j / max(s_i, eps))^q                compensation                 (Eq. 7)

    Every region also pays the cross entropy of an objectness pair (object, background). Both sums
    are divided by all regions, as in the official code. At test time ``score_j = softmax(z)_j
    P(object)`` and the background's is P(background).

    N is summed over processes here; the official code counts on each process alone, from which
    ratios differ only by sampling noise.

    Args:
        p: exponent of the mitigation factor; 0 switches it off.
        q: exponent of the compensation factor; 0 switches it off.
        eps: floor of the target's probability in the compensation factor.
        objectness: logits are K classes, object, background. False makes the background one more
            class of the softmax, K+1 logits, and counts it like one (paper, Table 5).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 0.01,
        objectness: bool = True,
    ):
        super().__init__(num_classes)
        self.p = check_non_negative("p", p)
        self.q = check_non_negative("q", q)
        self.eps = check_probability("eps", eps)
        self.objectness = objectness
        count = torch.zeros(num_classes + 1, dtype=torch.float64)
        self.register_buffer("region_count", count)  # (K+1,), background last

    @property
    def num_logits(self) -> int:
        return self.num_classes + (2 if self.objectness else 1)

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        ones = torch.ones_like(targets, dtype=torch.float64)
        counts = torch.zeros_like(self.region_count).scatter_add_(0, targets, ones)
        self.accumulate(region_count=counts)
        parts, how = self._parts(targets), self.implementation
        return softmax_cross_entropy(logits, *parts, reduction=reduction, implementation=how).loss

    def _parts(self, targets: Tensor) -> list[SoftmaxPart]:
        shifts = LogitShifts(
            log_count=self.p * self.region_count.clamp(min=1).log(),
            compensation=Compensation(self.q, math.log(self.eps)) if self.q else None,
        )
        if not self.objectness:
            return [SoftmaxPart(targets, shifts=shifts)]
        num_classes = self.num_classes
        is_foreground = targets < num_classes
        shifts = shifts._replace(log_count=shifts.log_count[:-1])
        labels = targets.clamp(max=num_classes - 1)  # those of the background have the weight 0
        classes = SoftmaxPart(labels, is_foreground, 0, num_classes, shifts)
        return [classes, SoftmaxPart((~is_foreground).long(), None, num_classes, 2)]

    def activation(self, logits: Tensor) -> Tensor:
        if not self.objectness:
            return logits.softmax(dim=1)
        classes, objectness = logits[:, :-2].softmax(dim=1), logits[:, -2:].softmax(dim=1)
        return torch.cat([classes * objectness[:, :1], objectness[:, 1:]], dim=1)

    def class_state(self) -> dict[str, Tensor]:
        return {"region_count": self.region_count[: self.num_classes]}
