"""Equalized focal loss, "EFL" and "EQFL" (CVPR 2022, https://arxiv.org/abs/2201.02593)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import TermWeights
from ..ops.sigmoid_ce import KernelTerms
from .base import check_non_negative, check_probability
from .cross_entropy import SigmoidCrossEntropyLoss
from .distributed import all_reduce_sum, world_size
from .focal import FocalTerms

NORMALIZERS = ("foreground", "regions")


class EqualizedFocalLoss(SigmoidCrossEntropyLoss):
    """
    Focal loss that focuses the more on a class, the less gradient it has got as a positive.

    With x = z on the target's column and -z elsewhere, and g_j in [0, 1] the ratio of accumulated
    positive to negative gradient of class j, as in EQL v2,

        loss_i = sum_j alpha_ij (gamma_j / gamma) sigmoid(-x_ij)^gamma_j log(1 + exp(-x_ij))
        gamma_j = gamma + scale (1 - g_j)
        alpha_ij = alpha on the target's column, 1 - alpha elsewhere

    Factors of a step come from the state before it; g is 1 at the start, which is focal loss. The
    state grows by the magnitude of the loss's gradient, summed over regions and processes.

    Here that gradient is written out, so nothing has to be hooked and mixed precision does not
    scale it. The official code takes it from a backward hook, together with whatever else flows
    there, and loses the state to NaN at the first logit above 17, where its float32 loss overflows.

    Args:
        scale: strength of the class-dependent focusing; 0 gives focal loss. The official configs
            have 8, and 4 for YOLOX.
        gamma: focusing of a class with balanced gradients; above 0.
        alpha: weight of the positive terms.
        quality: EQFL. The target of a region's own class is ``quality``, e.g. its IoU with the
            object, a term weighs |target - sigmoid(z)|^gamma_j, and alpha is not used.
        normalizer: "foreground" divides by the foreground regions, averaged over processes and 1
            at least, as one-stage detectors do; "regions" by all regions.
        prior_probability: see SigmoidCrossEntropyLoss.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        scale: float = 8.0,
        gamma: float = 2.0,
        alpha: float = 0.25,
        quality: bool = False,
        normalizer: str = "foreground",
        prior_probability: float = 0.001,
    ):
        super().__init__(num_classes, prior_probability=prior_probability)
        if not 0 < gamma < float("inf"):
            raise ValueError(f"gamma must be a number above 0, got {gamma}: it divides gamma_j")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer must be one of {NORMALIZERS}, got {normalizer!r}")
        self.scale = check_non_negative("scale", scale)
        self.gamma = float(gamma)
        self.alpha = check_probability("alpha", alpha)
        self.quality = quality
        self.normalizer = normalizer
        zeros = torch.zeros(num_classes, dtype=torch.float64)
        self.register_buffer("positive_gradient", zeros)  # (K,)
        self.register_buffer("negative_gradient", zeros.clone())  # (K,)

    @property
    def gradient_ratio(self) -> Tensor:
        """(K,) float64 g_j in [0, 1]; 1 before the first step."""
        ratio = self.positive_gradient / (self.negative_gradient + 1e-10)
        started = self.negative_gradient.any() | self.positive_gradient.any()
        return torch.where(started, ratio.clamp(max=1), 1.0)

    @property
    def focusing(self) -> Tensor:
        """(K,) float64 gamma_j."""
        return self.gamma + self.scale * (1 - self.gradient_ratio)

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights:
        weights = self.focusing / self.gamma
        if self.quality:
            return TermWeights(weights, weights)
        return TermWeights(self.alpha * weights, (1 - self.alpha) * weights)

    def region_losses(
        self,
        logits: Tensor,
        targets: Tensor,
        reduction: str = "none",
        quality: Tensor | None = None,
    ) -> Tensor:
        """
        (R,) loss of each region, or their mean.

        Args:
            quality: (R,) target in [0, 1] of the own class of each foreground region; read only
                with the switch of that name. 1 if left out.
        """
        focusing = self.focusing.to(logits.dtype)
        terms = FocalTerms(focusing)
        if self.quality:
            quality = logits.new_ones(len(targets)) if quality is None else quality
            terms = QualityFocalTerms(focusing, quality.to(logits.dtype))
        accumulates = self.is_accumulating
        result = self.cross_entropy(
            logits, targets, reduction, terms=terms, class_gradients=accumulates
        )
        total = self._normalizer_of_all_processes(targets)
        if accumulates:
            self.accumulate(
                positive_gradient=result.positive_gradient / total,
                negative_gradient=result.negative_gradient / total,
            )
        if self.normalizer == "regions":
            return result.loss
        # The contract divides by the regions.
        processes = world_size() if accumulates else 1
        return result.loss * (len(targets) * processes / total).to(logits.dtype)

    def class_state(self) -> dict[str, Tensor]:
        return {"gradient_ratio": self.gradient_ratio}

    def _normalizer_of_all_processes(self, targets: Tensor) -> Tensor:
        counted = torch.ones_like(targets)
        if self.normalizer == "foreground":
            counted = (targets < self.num_classes).long()
        count = counted.sum()
        if self.is_accumulating:  # a validation loss may run on one process only
            (count,) = all_reduce_sum(count)
        return count.double().clamp(min=1)


class QualityFocalTerms(FocalTerms):
    """
    Focal terms whose positives have the target q = ``quality`` (R,) instead of 1.

        |q - p|^gamma BCE(x, q),   p = sigmoid(x)
    """

    def __init__(self, gamma: Tensor, quality: Tensor):
        super().__init__(gamma)
        self.quality = quality

    @property
    def kernel(self) -> KernelTerms:
        return KernelTerms("quality_focal", self.gamma, self.quality)

    def positive(self, x: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        gamma, score = self.gamma[column], x.sigmoid()
        excess = score - self.quality
        distance = excess.abs().clamp(min=torch.finfo(x.dtype).tiny)
        entropy = F.binary_cross_entropy_with_logits(x, self.quality, reduction="none")
        slope = gamma * score * (1 - score) * entropy + distance.square()
        return distance**gamma * entropy, excess.sign() * distance ** (gamma - 1) * slope
