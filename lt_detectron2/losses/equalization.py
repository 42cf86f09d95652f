"""Equalization loss, "EQL", and its softmax form (CVPR 2020, https://arxiv.org/abs/2003.05176)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import LogitShifts, TermWeights
from ..statistics import GROUP_NAMES, ClassStatistics
from .base import check_non_negative, check_statistics
from .cross_entropy import SigmoidCrossEntropyLoss, SoftmaxCrossEntropyLoss
from .sampling import DrawnRows


class EqualizationLoss(SigmoidCrossEntropyLoss):
    """
    Spares tail classes the negative terms that objects of other classes would give them.

        w_ij = 1 - E_i T_j (1 - y_ij)                                                    (Eq. 4)

    where E_i is 1 for a foreground region and T_j is 1 for a tail class. Background regions keep
    all their terms. The images' own lists of negative categories, which the paper also exempts,
    are not used: no released code uses them.

    Args:
        statistics: counts of the training set; T_j is read from its image counts.
        frequency_threshold: lambda in the paper: a class is in the tail if the share of images
            that hold it is smaller. None takes the rare and common classes (at most 100 images),
            which is what the official 1.77e-3 means on LVIS v0.5. 0 gives plain sigmoid cross
            entropy.
        prior_probability: see SigmoidCrossEntropyLoss.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        frequency_threshold: float | None = None,
        prior_probability: float = 0.001,
    ):
        super().__init__(num_classes, prior_probability=prior_probability)
        is_tail = tail_classes(statistics, num_classes, frequency_threshold)
        self.register_buffer("is_tail", is_tail, persistent=False)  # (K,) bool
        negative = torch.stack([torch.ones_like(is_tail), ~is_tail]).float()
        self.register_buffer("negative_weight", negative, persistent=False)  # (2, K)

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights:
        return TermWeights(negative=self.negative_weight)


class SoftmaxEqualizationLoss(SoftmaxCrossEntropyLoss):
    """
    Softmax form of EQL, "SEQL": tail classes drop out of the other classes' softmax at random.

        loss_i = -log( exp(z_it) / sum_k w_ik exp(z_ik) )                           (Eq. 9, 10)
        w_ik = 1 - E_i beta_ik T_k (1 - y_ik),   beta_ik = 1 with probability gamma

    T_k and E_i as in EqualizationLoss; E_i is added here, because the paper uses this form for
    image classification, without a background. beta is drawn for every region and class, which
    the paper leaves open; there is no official code.

    Args:
        statistics: counts of the training set; T_k is read from its image counts.
        frequency_threshold: see EqualizationLoss. The paper uses 4.3e-4 on ImageNet-LT and 3e-3
            on CIFAR-100-LT. 0 gives plain softmax cross entropy.
        gamma: probability of dropping out, 0.9 on ImageNet-LT and 0.95 on CIFAR-100-LT. 0 gives
            plain softmax cross entropy, 1 always drops.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        frequency_threshold: float | None = None,
        gamma: float = 0.9,
    ):
        super().__init__(num_classes)
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be a probability in 0..1, got {gamma}: SEQL uses 0.9")
        self.gamma = float(gamma)
        is_tail = tail_classes(statistics, num_classes, frequency_threshold)
        self.register_buffer("is_tail", F.pad(is_tail, (0, 1)), persistent=False)  # (K+1,) bool

    def logit_shifts(self, logits: Tensor, targets: Tensor) -> LogitShifts:
        rows = DrawnRows.of(targets != self.num_classes)
        keeps = self.uniform(logits.shape, rows.drawn).ge_(self.gamma * self.is_tail)
        return LogitShifts(kept=rows.spare_others(keeps), kept_row=rows.place)


def tail_classes(
    statistics: ClassStatistics, num_classes: int, frequency_threshold: float | None
) -> Tensor:
    """
    (K,) bool: image frequency below the threshold, or rare and common if that is None.

    Raises:
        ValueError: the statistics are of another number of classes, or the threshold is negative.
    """
    check_statistics(statistics, num_classes)
    if frequency_threshold is None:
        return statistics.frequency_group() < GROUP_NAMES.index("frequent")
    check_non_negative("frequency_threshold", frequency_threshold)
    return statistics.image_frequency < torch.tensor(frequency_threshold, dtype=torch.float64)
