"""Balanced softmax (NeurIPS 2020, https://arxiv.org/abs/2007.10740), alias logit adjustment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import LogitShifts
from ..statistics import ClassStatistics
from .base import check_non_negative, check_statistics
from .cross_entropy import SigmoidCrossEntropyLoss, SoftmaxCrossEntropyLoss


class BalancedSoftmaxLoss(SoftmaxCrossEntropyLoss):
    """
    Softmax cross entropy of logits to which the log-frequency of each class is added.

        loss_i = CE(z_i + tau a, t_i),   a_j = log N_j - log mean_k N_k,   a_background = 0

    The classifier then need not learn how frequent a class is; at test time z is used as it is.
    With tau = 1 this is Balanced Softmax (Eq. 4; counts there, which differ by a constant) and the
    logit-adjusted loss of https://arxiv.org/abs/2007.07314. Neither defines a background: here a
    class of average size is neither favoured nor handicapped against it.

    Args:
        statistics: counts of the training set; N_j is read from its instance counts. A class
            without an object is left out of the softmax of all regions that are not its own.
        tau: strength of the adjustment; 0 gives plain softmax cross entropy.
    """

    def __init__(self, num_classes: int, statistics: ClassStatistics, *, tau: float = 1.0):
        super().__init__(num_classes)
        self.tau = check_non_negative("tau", tau)
        counts = check_statistics(statistics, num_classes).instance_count.double()
        is_absent = counts == 0
        mean = counts.sum() / (~is_absent).sum().clamp(min=1)
        offset = self.tau * (counts.clamp(min=1) / mean.clamp(min=1)).log()
        offset = F.pad(offset, (0, 1))
        is_left_out = F.pad(is_absent & (self.tau > 0), (0, 1))
        self.register_buffer("own_offset", offset, persistent=False)  # (K+1,)
        offset = offset.masked_fill(is_left_out, -torch.inf)
        self.register_buffer("offset", offset, persistent=False)  # (K+1,)

    def logit_shifts(self, logits: Tensor, targets: Tensor) -> LogitShifts:
        return LogitShifts(offset=self.offset, own_offset=self.own_offset)


class BalancedSigmoidLoss(SigmoidCrossEntropyLoss):
    """
    The sigmoid form that the authors of Balanced Softmax trained their LVIS detector with.

        loss_i = sum_j BCE(z_ij - E_i log((1 - f_j) / f_j), y_ij)

    where f_j is the share of images that hold class j and E_i is 1 for a foreground region:
    background regions, and scores at test time, are those of plain sigmoid cross entropy.

    Args:
        statistics: counts of the training set; f_j is read from its image counts. A class in no
            image, or in all, is treated as if half an image were different.
        tau: strength of the adjustment; 0 gives plain sigmoid cross entropy.
        prior_probability: see SigmoidCrossEntropyLoss.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        tau: float = 1.0,
        prior_probability: float = 0.001,
    ):
        super().__init__(num_classes, prior_probability=prior_probability)
        self.tau = check_non_negative("tau", tau)
        images = check_statistics(statistics, num_classes).image_count.double()
        log_odds = (
            images.clamp(min=0.5).log() - (statistics.num_images - images).clamp(min=0.5).log()
        )
        self.register_buffer("offset", self.tau * log_odds, persistent=False)  # (K,)

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        offset = torch.stack([torch.zeros_like(self.offset), self.offset])
        return self.cross_entropy(logits, targets, reduction, offset=offset).loss
