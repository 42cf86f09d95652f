"""Softmax equalization driven by gradients, as in the United-Perception code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import LogitShifts
from .base import check_non_negative
from .cross_entropy import SoftmaxCrossEntropyLoss
from .distributed import all_reduce_sum

INDICATORS = ("positive", "negative")
FORMULATIONS = ("clamped", "share")


class SoftmaxEqualizationLossV2(SoftmaxCrossEntropyLoss):
    """
    Softmax cross entropy of logits shifted by the gradient that each class has gathered.

        loss_i = CE(z_i + a, t_i),   a_j = log v_j - log mean_k v_k,   a_background = 0
        v_j = max(g_j, 1e-4)^tau                          "clamped", called softmax_eql
        v_j = (g_j / (sum_k g_k + 1e-4))^tau + 1e-9       "share", called softmax_eqlv2

    g_j is the accumulated magnitude of the gradient of the mean loss with respect to z_j, over the
    regions of class j (positive) or over all others (negative). It is what balanced softmax reads
    from counts, measured instead. Weights of a step come from the state before it. At test time z
    is used as it is.

    There is no paper: the code is United-Perception's, for image classification. It has no
    background, for which the mean is subtracted here so that an average class stands to it as in
    softmax; among classes this changes nothing. Gradients are those of the mean over the regions
    of all processes; the official code adds up the means of each.

    Args:
        indicator: "positive" or "negative", the gradient that g_j accumulates.
        formulation: "clamped" or "share".
        tau: strength of the shift; 0 gives softmax cross entropy.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        indicator: str = "positive",
        formulation: str = "clamped",
        tau: float = 1.0,
    ):
        super().__init__(num_classes)
        if indicator not in INDICATORS:
            raise ValueError(f"indicator must be one of {INDICATORS}, got {indicator!r}")
        if formulation not in FORMULATIONS:
            raise ValueError(f"formulation must be one of {FORMULATIONS}, got {formulation!r}")
        self.indicator = indicator
        self.formulation = formulation
        self.tau = check_non_negative("tau", tau)
        zeros = torch.zeros(num_classes, dtype=torch.float64)
        self.register_buffer("positive_gradient", zeros)  # (K,)
        self.register_buffer("negative_gradient", zeros.clone())  # (K,)

    def class_state(self) -> dict[str, Tensor]:
        return {"log_prior": self.offset}

    @property
    def offset(self) -> Tensor:
        """(K,) float64 shift a_j of the classes' logits in the next step."""
        gathered = self.get_buffer(f"{self.indicator}_gradient")
        if self.formulation == "clamped":
            log_prior = self.tau * gathered.clamp(min=1e-4).log()
        else:
            log_prior = ((gathered / (gathered.sum() + 1e-4)) ** self.tau + 1e-9).log()
        return log_prior - log_prior.exp().mean().log()

    def logit_shifts(self, logits: Tensor, targets: Tensor) -> LogitShifts:
        return LogitShifts(offset=F.pad(self.offset, (0, 1)))

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        accumulates = self.is_accumulating
        result = self.cross_entropy(logits, targets, reduction, class_gradients=accumulates)
        if accumulates:
            self._observe(result.positive_gradient[:-1], result.negative_gradient[:-1], targets)
        return result.loss

    @torch.no_grad()
    def _observe(self, positive: Tensor, negative: Tensor, targets: Tensor) -> None:
        regions = positive.new_full((1,), len(targets))
        positive, negative, regions = all_reduce_sum(positive, negative, regions)
        self.positive_gradient += positive / regions.clamp(min=1)
        self.negative_gradient += negative / regions.clamp(min=1)
