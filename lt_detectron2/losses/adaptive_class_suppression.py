"""Adaptive class suppression loss, "ACSL" (CVPR 2021, https://arxiv.org/abs/2104.00885)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import TermWeights
from ..statistics import GROUP_NAMES, ClassStatistics
from .base import check_statistics
from .cross_entropy import SigmoidCrossEntropyLoss
from .sampling import choose_regions


class AdaptiveClassSuppressionLoss(SigmoidCrossEntropyLoss):
    """
    Suppresses a class on an object of another class only where the two are being confused.

    K classes and one background column, each a binary task with the terms

        w_ij = 1                    j is the region's own column
        w_ij = [p_ij >= xi]         other columns of a foreground region, the background's too
        w_ij = [i in S_g(j)]        classes of a background region

    S_g holds a share of the step's background regions, drawn anew for each of the groups rare,
    common and frequent. The share is rounded down: 100 background regions give the rare classes
    one. The paper trains the classifier alone with this, after a softmax detector.

    Args:
        statistics: counts of the training set; groups are read from its image counts.
        score_threshold: xi in the paper; 0 keeps all terms of foreground regions.
        background_ratios: shares of the background regions that suppress rare, common and frequent
            classes, as in the official code. (1, 1, 1) keeps all terms of background regions.
        prior_probability: see SigmoidCrossEntropyLoss.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        score_threshold: float = 0.7,
        background_ratios: Sequence[float] = (0.01, 0.1, 1.0),
        prior_probability: float = 0.01,
    ):
        super().__init__(num_classes, prior_probability=prior_probability)
        check_statistics(statistics, num_classes)
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must lie in 0..1, got {score_threshold}")
        ratios = tuple(float(ratio) for ratio in background_ratios)
        if len(ratios) != len(GROUP_NAMES) or not all(0 <= ratio <= 1 for ratio in ratios):
            raise ValueError(
                f"background_ratios must be three shares in 0..1 ({', '.join(GROUP_NAMES)}), "
                f"got {ratios}"
            )
        self.score_threshold = float(score_threshold)
        self.background_ratios = ratios
        shares = torch.tensor(ratios, dtype=torch.float64)
        self.register_buffer("group_share", shares, persistent=False)  # (3,)
        groups = statistics.frequency_group()
        # Every choice of groups, one a row; the background's own column is never masked.
        bits = torch.arange(2 ** len(GROUP_NAMES))[:, None] >> groups & 1  # (8, K)
        mask = F.pad(bits.float(), (0, 1), value=1.0)
        self.register_buffer("mask_of_choice", mask, persistent=False)  # (8, K+1) 0 or 1
        self.register_buffer("bit", 2 ** torch.arange(len(GROUP_NAMES)), persistent=False)  # (3,)
        min_score = torch.zeros(2, num_classes + 1)
        min_score[1] = score_threshold
        self.register_buffer("min_score", min_score, persistent=False)  # (2, K+1)

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights:
        is_background = (targets == self.num_classes)[:, None]  # (R, 1)
        quota = (is_background.sum() * self.group_share).floor()
        draws = self.uniform((len(logits), len(GROUP_NAMES)))
        chosen = choose_regions(is_background.expand_as(draws), quota, draws)  # (R, 3)
        choice = ((chosen | ~is_background) * self.bit).sum(dim=1)  # all groups for the foreground
        return TermWeights(min_score=self.min_score, mask=self.mask_of_choice, mask_row=choice)

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()
