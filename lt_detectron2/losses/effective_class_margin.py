"""Effective class-margin loss, "ECM" (ECCV 2022, https://arxiv.org/abs/2301.09724)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import TermWeights
from ..statistics import ClassStatistics
from .base import check_statistics
from .cross_entropy import SigmoidCrossEntropyLoss


class EffectiveClassMarginLoss(SigmoidCrossEntropyLoss):
    """
    Binary cross entropies with the margins that bound a class's average precision.

    K classes and one background column. With n_j the objects of class j in the training set, n_K =
    rho sum_j n_j those of the background, and N the sum of all,

        loss_i = sum_j w_j BCE(2 z_ij + a_j, y_ij)                                 (Eq. 10, 11)
        a_j = log(n_j / (N - n_j)) / 4        positive minus negative margin             (Eq. 8)
        w_j = alpha_j log(1 + 1 / alpha_j),  alpha_j = (N - n_j) / n_j              (Theorem 2)

    The 2 comes from the paper's surrogate score exp(z) / (exp(z) + exp(-z)), here in log space:
    the official form overflows from |z| = 44 on in float32. At test time margins and the 2 are
    left out: ``score_j = p_j (1 - p_background)``. The method was published with a cosine
    classifier of temperature 20 and a warm-up of 10,000 steps.

    Args:
        statistics: counts of the training set; n_j is its instance count, also in the official
            code, which keeps it in a file named after image counts. A class without objects counts
            as one with one object: its weight is 1 and its margin the largest.
        background_ratio: rho, background regions per object.
        official_fp32_weights: compute w in float32 as the official code does, where cancellation
            makes the weights of rare classes up to 11% too large.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        background_ratio: float = 6.3313,
        official_fp32_weights: bool = False,
    ):
        super().__init__(num_classes)
        if not 0 < background_ratio < float("inf"):
            raise ValueError(f"background_ratio must be a number above 0, got {background_ratio}")
        self.background_ratio = float(background_ratio)
        self.official_fp32_weights = official_fp32_weights
        count = check_statistics(statistics, num_classes).instance_count.clamp(min=1)
        count = count.to(torch.float32 if official_fp32_weights else torch.float64)
        count = torch.cat([count, self.background_ratio * count.sum(dim=0, keepdim=True)])
        rest = count.sum() - count
        alpha = rest / count
        if official_fp32_weights:
            weight = alpha * torch.log((1 + alpha) / alpha)
        else:
            weight = alpha * torch.log1p(1 / alpha)
        margin = (count / rest).log() / 4
        self.register_buffer("class_weight", weight, persistent=False)  # (K+1,)
        self.register_buffer("margin", margin, persistent=False)  # (K+1,)

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights:
        return TermWeights(self.class_weight, self.class_weight)

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        return self.cross_entropy(logits, targets, reduction, scale=2.0, offset=self.margin).loss

    def activation(self, logits: Tensor) -> Tensor:
        probabilities = logits.sigmoid()
        classes, background = probabilities[:, :-1], probabilities[:, -1:]
        return torch.cat([classes * (1 - background), background], dim=1)

    def init_classifier(self, classifier: nn.Linear) -> None:
        nn.init.zeros_(classifier.bias)  # the margins are the prior
