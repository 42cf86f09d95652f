"""Gumbel activation, "GOL" (ECCV 2022, https://arxiv.org/abs/2207.10936)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import TermWeights, one_pass
from ..ops.one_pass import LOG2_E, exp_of
from ..ops.sigmoid_ce import BinaryTerms, KernelTerms
from ..statistics import ClassStatistics
from .drop import DropLoss
from .equalization import EqualizationLoss

WEIGHTINGS = ("none", "equalization", "drop")
LEAST_ODDS = 1e-12
"""log1p of less takes twice the time on the CPU; the value of a term is not worth it."""
MIN_LOGIT, MAX_LOGIT = -4.0, 10.0
"""Training clamps logits to this range; outside of it a term has no gradient."""
INITIAL_WEIGHT, INITIAL_BIAS = 0.001, -2.0
"""Every class starts at the probability 6e-4."""


class GumbelLoss(DropLoss):
    """
    Binary cross entropy with the Gumbel distribution in place of the sigmoid.

        p = exp(-exp(-z)),   loss_i = -sum_j w_ij ( y_ij log p_ij + (1 - y_ij) log(1 - p_ij) )

    with the weights of DropLoss (the paper's GOL) or of EQL. Logits are clamped to [-4, 10] in
    training, not at test time. The activation alone, the paper's "Gumbel cross entropy", is
    ``weighting="none", background_column=True``.

    Args:
        statistics: counts of the training set; tail classes are read from its image counts.
        weighting: "drop", "equalization" or "none", which weights every term 1.
        frequency_threshold: see EqualizationLoss. The official LVIS v1 configs set 0.0011, which
            adds 17 frequent classes to the rare and common ones.
        official_gradient: torch's binary cross entropy on p, which floors p (1 - p) at 1e-12, so
            that the gradient of a positive vanishes below z = -3.3 instead of growing to 55, as in
            the published runs. False gives the exact gradient, for which gradients may need
            clipping.
        background_column: K+1 logits, the background being one more class. Only with the weighting
            "none".
        loss_ceiling: largest value of the loss; above it nothing has a gradient. The official
            Gumbel cross entropy has 20, which stops training for good if the classifier starts
            with a zero bias. None sets no bound.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        weighting: str = "drop",
        frequency_threshold: float | None = None,
        official_gradient: bool = True,
        background_column: bool = False,
        loss_ceiling: float | None = None,
    ):
        super().__init__(num_classes, statistics, frequency_threshold=frequency_threshold)
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")
        if background_column and weighting != "none":
            raise ValueError(
                f"a background column does not go with the weighting {weighting!r}, which tells "
                'background regions by having no column: set weighting="none" or drop the column'
            )
        if loss_ceiling is not None and not loss_ceiling > 0:
            raise ValueError(f"loss_ceiling must be a number above 0 or None, got {loss_ceiling}")
        self.weighting = weighting
        self.official_gradient = official_gradient
        self.background_column = background_column
        self.loss_ceiling = loss_ceiling

    @property
    def num_logits(self) -> int:
        return self.num_classes + int(self.background_column)

    @property
    def terms(self) -> BinaryTerms:
        return GumbelTerms(self.official_gradient)

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights | None:
        if self.weighting == "none":
            return None
        if self.weighting == "equalization":
            return EqualizationLoss.term_weights(self, logits, targets)
        return super().term_weights(logits, targets)

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        losses = super().region_losses(logits, targets, reduction)
        if reduction == "mean" and self.loss_ceiling is not None:
            losses = losses.clamp(max=self.loss_ceiling)
        return losses

    def activation(self, logits: Tensor) -> Tensor:
        return F.pad(gumbel(logits), (0, 0 if self.background_column else 1))

    def init_classifier(self, classifier: nn.Linear) -> None:
        init_gumbel_classifier(classifier)


def gumbel(logits: Tensor) -> Tensor:
    """exp(-exp(-z)), the distribution function of the standard Gumbel distribution."""
    return torch.exp(-torch.exp(-logits))


class GumbelTerms:
    """
    -log(1 - p) for negatives and -log p for positives, with p = exp(-e), e = exp(-z).

    Their derivatives are p e / (1 - p) and -e. z is clamped first.

    Args:
        floored: divide by max(p (1 - p), 1e-12) on the way from p to z, as torch does.
    """

    def __init__(self, floored: bool):
        self.floored = floored

    @property
    def kernel(self) -> KernelTerms:
        name = "floored_gumbel" if self.floored else "gumbel"
        return KernelTerms(name, low=MIN_LOGIT, high=MAX_LOGIT)

    def negative(self, x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        e, p = self._distribution(x)
        # The floor is no matter here: where p (1 - p) is that small, so is p e.
        odds = 1 - p if self.floored else torch.expm1(-e).neg_()
        odds = torch.div(p, odds, out=odds)
        slope = torch.mul(e, odds, out=out)
        looks = one_pass.looking_is_free(x) and len(x) > 0
        if not (looks and x.max() <= MAX_LOGIT):
            slope *= torch.le(x, MAX_LOGIT, out=torch.empty_like(x))  # below MIN_LOGIT it is 0
        return p, odds.clamp_(min=LEAST_ODDS).log1p_(), slope

    def positive(self, x: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        e, p = self._distribution(x)
        variance = p * (1 - p)
        slope = -e * (variance / variance.clamp(min=1e-12) if self.floored else 1)
        return e, slope * ((x >= MIN_LOGIT) & (x <= MAX_LOGIT))

    def _distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        e = x.clamp(MIN_LOGIT, MAX_LOGIT).mul_(-LOG2_E).exp2_()
        return e, exp_of(e, -1)


def init_gumbel_classifier(classifier: nn.Linear) -> None:
    """Initialise a classifier as the official code does."""
    nn.init.constant_(classifier.weight, INITIAL_WEIGHT)
    nn.init.constant_(classifier.bias, INITIAL_BIAS)
