"""Focal loss on the regions of a two-stage detector (ICCV 2017, https://arxiv.org/abs/1708.02002)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import TermWeights
from ..ops.one_pass import exp_of
from ..ops.sigmoid_ce import BinaryTerms, KernelTerms, softplus
from .base import check_non_negative
from .cross_entropy import SigmoidCrossEntropyLoss

NORMALIZERS = ("foreground", "regions", "entries")


class FocalLoss(SigmoidCrossEntropyLoss):
    """
    Sigmoid cross entropy in which terms that are right already count little.

        loss_i = sum_j a_ij (1 - c_ij)^gamma BCE(z_ij, y_ij)                             (Eq. 5)

    where c_ij is the probability given to the truth, a_ij is alpha for the positive term and
    1 - alpha for negative ones.

    BAGS (https://arxiv.org/abs/2006.10408, supplementary) compares with a focal loss that has a
    column for the background and is divided by all R (K+1) entries: ``background_column=True,
    normalizer="entries"``. That is what its code means to do; as shipped, it reads the wrong
    targets, and its published numbers say nothing about focal loss.

    Args:
        alpha: weight of positives against negatives, in 0..1. None weights every term by 1.
        gamma: focusing strength; 0 with alpha None is sigmoid cross entropy.
        normalizer: what the sum over all regions is divided by.
            "foreground": the foreground regions of the process, at least 1, as in RetinaNet.
            "regions": all regions, like every other loss here.
            "entries": regions times columns.
        background_column: give the background a logit and a term of its own, K+1 columns.
        prior_probability: see SigmoidCrossEntropyLoss.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        normalizer: str = "foreground",
        background_column: bool = False,
        prior_probability: float = 0.01,
    ):
        super().__init__(num_classes, prior_probability=prior_probability)
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in 0..1, got {alpha}: None weights terms alike")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer must be one of {NORMALIZERS}, got {normalizer!r}")
        self.alpha = alpha
        self.gamma = check_non_negative("gamma", gamma)
        self.normalizer = normalizer
        self.background_column = background_column

    @property
    def num_logits(self) -> int:
        return self.num_classes + int(self.background_column)

    @property
    def terms(self) -> BinaryTerms:
        return FocalTerms(self.gamma)

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights:
        """Weights by which the mean over all regions is what the class's docstring says."""
        weight = logits.new_ones(logits.shape[1])
        if self.normalizer == "entries":
            weight = weight / logits.shape[1]
        elif self.normalizer == "foreground":
            weight = weight * (len(targets) / (targets < self.num_classes).sum().clamp(min=1))
        if self.alpha is None:
            return TermWeights(weight, weight)
        return TermWeights(self.alpha * weight, (1 - self.alpha) * weight)

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.background_column else super().activation(logits)


class FocalTerms:
    """
    c^gamma log(1 + exp(x)) for negatives, where c = sigmoid(x); for positives the same of -x.

    The derivative is c^gamma (c + gamma (1 - c) log(1 + exp(x))).

    Args:
        gamma: a number, or (L,) one for each column.
    """

    def __init__(self, gamma: float | Tensor):
        self.gamma = gamma

    @property
    def kernel(self) -> KernelTerms:
        return KernelTerms("focal", self.gamma)

    def negative(self, x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self._terms(x, self.gamma, out)

    def positive(self, x: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        gamma = self.gamma[column] if isinstance(self.gamma, Tensor) else self.gamma
        _, value, slope = self._terms(-x, gamma)
        return value, -slope

    def _terms(
        self, x: Tensor, gamma: float | Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        score, entropy = x.sigmoid(), softplus(x)
        modulation = exp_of((x - entropy).mul_(gamma))  # x - entropy = log sigmoid(x)
        slope = torch.addcmul(score, 1 - score, gamma * entropy, out=out).mul_(modulation)
        return score, modulation.mul_(entropy), slope
