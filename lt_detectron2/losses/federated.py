"""Federated loss (CenterNet2, https://arxiv.org/abs/2103.07461, appendix)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import TermWeights, one_pass, sigmoid_cross_entropy
from ..ops.one_pass import OnePass
from ..statistics import ClassStatistics
from .base import check_non_negative, check_statistics
from .cross_entropy import SigmoidCrossEntropyLoss


class FederatedLoss(SigmoidCrossEntropyLoss):
    """
    Sigmoid cross entropy over the classes of the step and a few others, drawn at random.

        loss_i = sum_{j in S} BCE(z_ij, y_ij)

    LVIS annotates each image for a part of the classes only, so that most negatives are guesses.
    S holds every class that is the target of a region, plus classes drawn without replacement with
    probabilities proportional to (images of the class)^frequency_power, until it has
    ``num_sampled_classes``. All regions of a process share one S; processes draw their own.

    As in the official code (Detectron2's, CenterNet2's and Detic's agree), a background among the
    targets takes one of the places although it has no term, and nothing is drawn where the places
    do not suffice. The classifier's unused last column of that code is left out here.

    Args:
        statistics: counts of the training set; its image counts are read. A class in no image is
            never drawn.
        num_sampled_classes: size of S; more than K uses all classes, sigmoid cross entropy.
        frequency_power: 0 draws all classes alike.
        prior_probability: see SigmoidCrossEntropyLoss. Detectron2's own version starts at 0.5.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        num_sampled_classes: int = 50,
        frequency_power: float = 0.5,
        prior_probability: float = 0.01,
    ):
        super().__init__(num_classes, prior_probability=prior_probability)
        if num_sampled_classes < 1:
            raise ValueError(
                f"num_sampled_classes must be at least 1, got {num_sampled_classes}: "
                "the official code uses 50"
            )
        self.num_sampled_classes = int(num_sampled_classes)
        self.frequency_power = check_non_negative("frequency_power", frequency_power)
        images = check_statistics(statistics, num_classes).image_count.double()
        weight = torch.where(images > 0, images**self.frequency_power, 0.0)
        self.register_buffer("sampling_weight", weight, persistent=False)  # (K,)

    def cross_entropy(
        self, logits: Tensor, targets: Tensor, reduction: str, **options: Any
    ) -> OnePass:
        sampled = self.sampled_classes(targets)
        background, weights = self.num_classes, None
        if one_pass.looking_is_free(logits) and sampled.any():
            columns = sampled.nonzero()[:, 0]
            background = len(columns)
            logits = logits.index_select(1, columns)
            place = F.pad(sampled.cumsum(0) - 1, (0, 1), value=background)
            targets = place[targets]
        else:
            weights = TermWeights(negative=sampled.to(logits.dtype))
        return sigmoid_cross_entropy(
            logits,
            targets,
            weights,
            background=background,
            reduction=reduction,
            implementation=self.implementation,
            **options,
        )

    def sampled_classes(self, targets: Tensor) -> Tensor:
        """(K,) bool indicator of S."""
        present = torch.zeros(self.num_classes + 1, dtype=torch.bool, device=targets.device)
        present = present.index_fill(0, targets, True)
        is_target, has_background = present[:-1], present[-1]
        places = self.num_sampled_classes - is_target.sum() - has_background.long()
        # Exponential waiting times of rates w: the first arrivals are a draw without replacement
        # with probabilities proportional to w.
        arrival = -self.uniform(self.sampling_weight.shape).double().log() / self.sampling_weight
        can_be_drawn = ~is_target & (self.sampling_weight > 0)
        arrival = arrival.masked_fill(~can_be_drawn, torch.inf)
        place = arrival.argsort().argsort()
        return is_target | (can_be_drawn & (place < places))
