"""GAP loss, "ROG" (ICCV 2023, https://doi.org/10.1109/ICCV51070.2023.01740)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import ranking_errors
from ..statistics import ClassStatistics
from .base import AccumulatingModule, check_non_negative, check_statistics, check_targets
from .distributed import all_reduce_sum


class RankingLoss(NamedTuple):
    """What :class:`GAPLoss` returns."""

    loss: Tensor
    """Scalar with a graph: what is added to the other losses, weights of classes and lambda in."""
    value: Tensor
    """Scalar without a graph: mean error of the classes, what the official code logs."""


class GAPLoss(AccumulatingModule):
    """
    Ranks the score of every positive above those of all negatives, of all classes and images.

    An add-on to any :class:`ClassificationLoss`, whose ``class_logits`` it takes. In a batch of R
    regions, P(m) are the cells (i, m) of the regions i of class m, C the classes that have any, and
    N all other cells (i, j), j != t_i. With H(j|i) = clamp((z_j - z_i) / (2 delta) + 1/2, 0, 1),

        loss = lambda / |C| sum_{m in C} omega_m / |P(m)| sum_{i in P(m)} F_i / R_i
        F_i = sum_{j in N} H(j|i),   R_i = F_i + sum_{k in P(m)} H(k|i)
        omega_m = n_m^-gamma / mean_k n_k^-gamma

    n_m counts the sampled regions of class m in training so far, this step included, or the objects
    of the training set; at least 1. The gradient is not the derivative but the error-driven update
    of :func:`lt_detectron2.ops.ranking_errors`: F_i / R_i up for a positive, H(j|i) / R_i down for
    a negative. It is 0 once each positive lies delta above all negatives.

    The pool of cells is that of one process, as published; a step without positives costs 0 and
    still has a graph. Counts are summed over processes, which the official code does not do.

    With ``ap_style`` it is AP loss (https://arxiv.org/abs/2008.07294): all positives are ranked
    together, each counts 1 instead of 1/2 in its own R_i, and its precision is the best among the
    positives that score as low or lower. It was published with delta = 1 and without omega.

    Args:
        statistics: counts of the training set; read only if ``online`` is off.
        gamma: strength of omega; 0 makes all classes equal. Published: 0.5 with repeat factor
            sampling (weight 0.1), 1.0 with random sampling (weight 1.0).
        weight: lambda. 0 switches the gradient off.
        delta: half the width of the step H, in logit units.
        category_specific: rank the positives of each class for themselves. False ranks all
            together, and their mean error is the loss.
        statistic: weigh classes by omega; False is gamma = 0.
        online: count sampled regions while training. False takes the instance counts of the
            training set.
        exclude_foreground: leave the positives of other classes out of the negatives of a class.
        sync_counts: sum the counts over processes; False, as in the official code, keeps each
            process to its own. Resumed in as many processes, each goes on from its own; in another
            number, all do from those of the first.
        ap_style: AP loss, see above; needs ``category_specific`` off.

    Raises:
        ValueError: a number out of range, or switches that exclude each other.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics | None = None,
        *,
        gamma: float = 0.5,
        weight: float = 0.1,
        delta: float = 0.5,
        category_specific: bool = True,
        statistic: bool = True,
        online: bool = True,
        exclude_foreground: bool = True,
        sync_counts: bool = True,
        ap_style: bool = False,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"GAPLoss needs at least one class, got {num_classes}")
        if not 0 < delta < float("inf"):
            raise ValueError(f"delta must be a finite number above 0, got {delta}")
        if statistic and not category_specific:
            raise ValueError(
                "statistic weighs the mean errors of classes, and without category_specific there "
                "are none: switch statistic off too"
            )
        if ap_style and category_specific:
            raise ValueError(
                "ap_style ranks the positives of all classes together: switch category_specific off"
            )
        if statistics is not None:
            check_statistics(statistics, num_classes)
        elif statistic and not online:
            raise ValueError(
                "without online counts the class weights come from the training set: pass its "
                "statistics, or leave online on"
            )
        self.num_classes = int(num_classes)
        self.gamma = check_non_negative("gamma", gamma)
        self.weight = check_non_negative("weight", weight)
        self.delta = float(delta)
        self.category_specific = category_specific
        self.statistic = statistic
        self.online = online
        self.exclude_foreground = exclude_foreground
        self.sync_counts = sync_counts
        self.ap_style = ap_style
        if statistic and online:
            count = torch.zeros(num_classes + 1, dtype=torch.float64)
            self.register_buffer("region_count", count)  # (K+1,), background last
        elif statistic:
            count = statistics.instance_count.double()
            self.register_buffer("instance_count", count, persistent=False)  # (K,)

    @property
    def class_weight(self) -> Tensor | None:
        """(K,) float64 omega, 1 in the mean; None without ``statistic``."""
        if not self.statistic:
            return None
        count = self.region_count[:-1] if self.online else self.instance_count
        weight = count.clamp(min=1) ** -self.gamma
        return weight / weight.mean()

    def class_state(self) -> dict[str, Tensor]:
        """(K,) quantities that are worth logging, as those of a classification loss."""
        return {"ranking_weight": self.class_weight} if self.statistic else {}

    def forward(self, class_logits: Tensor, targets: Tensor) -> RankingLoss:
        """
        Rank a batch.

        Args:
            class_logits: (R, K) logits of the classes, never of the background or an objectness; of
                any floating type, computed in float32 at least. Not written to.
            targets: (R,) int64 in 0..K.

        Returns:
            Weighted loss with a graph and official value without, both 0 where no region is of a
            class.

        Raises:
            ValueError: shapes, dtype or (on the CPU) range of the targets.
        """
        self._check_logits(class_logits)
        check_targets(repr(self), class_logits, targets, self.num_classes)
        with torch.autocast(class_logits.device.type, enabled=False):
            return self._rank(class_logits, targets)

    def _rank(self, class_logits: Tensor, targets: Tensor) -> RankingLoss:
        num_regions, num_classes = class_logits.shape
        is_positive = targets < num_classes
        count = torch.zeros(num_classes + 1, dtype=torch.float64, device=targets.device)
        count.scatter_add_(0, targets, torch.ones_like(targets, dtype=torch.float64))
        if self.statistic and self.online and self.is_accumulating:
            self._accumulate(count)
        # Background regions stay in as placeholders: nobody has to wait for their number.
        label = targets.masked_fill(~is_positive, 0)
        first_cell = torch.arange(num_regions, device=targets.device) * num_classes
        errors = ranking_errors(
            class_logits,
            first_cell + label,
            label if self.category_specific else None,
            is_positive,
            delta=self.delta,
            exclude_positives=self.exclude_foreground,
            interpolate=self.ap_style,
        )
        if self.category_specific:
            num_present = count[:-1].count_nonzero().clamp(min=1)
            share = is_positive / (count[label] * num_present).clamp(min=1)
        else:
            share = is_positive / is_positive.sum().clamp(min=1).double()
        weight = self.weight * share
        if self.statistic:
            weight = weight * self.class_weight[label]
        dtype = torch.promote_types(class_logits.dtype, torch.float32)
        loss = (weight * errors).sum().to(dtype)
        value = (share * errors.detach()).sum().to(dtype)
        return RankingLoss(loss, value)

    def _accumulate(self, count: Tensor) -> None:
        # A collective: on every process in every step, whatever regions it has.
        if self.sync_counts:
            (count,) = all_reduce_sum(count)
        self.region_count += count

    def extra_repr(self) -> str:
        return f"{self.num_classes} classes"

    def _check_logits(self, class_logits: Tensor) -> None:
        if class_logits.ndim != 2 or class_logits.shape[1] != self.num_classes:
            expected = f"({len(class_logits) if class_logits.ndim else 'R'}, {self.num_classes})"
            raise ValueError(
                f"{self!r} expects class logits of shape {expected}, got "
                f"{tuple(class_logits.shape)}: pass loss.class_logits(logits)"
            )
        if not class_logits.is_floating_point():
            raise ValueError(
                f"{self!r} expects floating point logits, got {class_logits.dtype}: "
                "pass the classifier's output, not class indices"
            )
