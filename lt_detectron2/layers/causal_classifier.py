"""Multi-head normalised classifier of De-confound-TDE (https://arxiv.org/abs/2009.12991)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.base import AccumulatingModule
from ..losses.distributed import all_reduce_sum
from .cosine_linear import at_least_float32


class CausalClassifier(AccumulatingModule, nn.Linear):
    """
    Mean of cosine-like classifiers on slices of the features, and the mean feature of the training.

        z_c = S sum_k <x_k / |x_k|, w_ck / (|w_ck| + gamma)>,   S = scale / heads,  k = 1..heads

    There is no bias. In training the mean feature of each step's foreground regions is added to a
    running sum, e <- mu e + mean(x), of which only the direction is ever used; the detector hands
    them over by :meth:`update`. The logits of training do not depend on it.
    ``lt_detectron2.calibration.TDE`` subtracts its effect at test time.

    Computed in float32 at least, also under autocast.

    Args:
        in_features: D, a multiple of ``num_heads``.
        out_features: number of logits.
        num_heads: slices of the features, 2 in the official code.
        scale: 16 there.
        gamma: added to the length of weights, 1/32 there.
        mu: momentum of the running sum. The official code has 0.9 for LVIS v0.5 and 0.9998 for v1.
        eps: added to the length of features and of their mean.

    Raises:
        ValueError: the features do not divide into heads, or a hyper-parameter is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_heads: int = 2,
        scale: float = 16.0,
        gamma: float = 0.03125,
        mu: float = 0.9998,
        eps: float = 1e-9,
    ):
        if num_heads < 1 or in_features % num_heads:
            raise ValueError(
                f"num_heads must divide the {in_features} features of the classifier, got "
                f"{num_heads}"
            )
        if not 0 < scale < math.inf or not 0 <= gamma < math.inf or not 0 < eps < math.inf:
            raise ValueError(
                f"expected scale > 0, gamma >= 0 and eps > 0, all finite, got {scale}, {gamma} and "
                f"{eps}"
            )
        if not 0 <= mu < 1:
            raise ValueError(f"mu must lie in [0, 1), got {mu}: 0 keeps the last step's mean only")
        super().__init__(in_features, out_features, bias=False)
        self.num_heads = int(num_heads)
        self.scale = float(scale)
        self.gamma = float(gamma)
        self.mu = float(mu)
        self.eps = float(eps)
        self.register_buffer("mean_feature", torch.zeros(in_features, dtype=torch.float64))
        """(D,) e, all 0 until a foreground region has been seen."""

    def reset_parameters(self) -> None:
        """Draw weights uniformly from -1 / sqrt(D) to 1 / sqrt(D), as the official code does."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    def reset_weight(self) -> None:
        """As :meth:`reset_parameters`; there is no bias."""
        self.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Logits (R, out_features), float32 at least, of features (R, D)."""
        with torch.autocast(features.device.type, enabled=False):
            features, weight = at_least_float32(features, self.weight)
            return F.linear(self._unit_heads(features), self._normalized(weight))

    def direct_effect(self, features: Tensor, alpha: float) -> Tensor:
        """
        Logits (R, out_features) less alpha times what lies along the mean feature.

        The same as the logits as long as no foreground region has been seen.
        """
        with torch.autocast(features.device.type, enabled=False):
            features, weight = at_least_float32(features, self.weight)
            units = self._unit_heads(features)
            mean = self._unit_heads(self.mean_feature.to(units.dtype)[None])
            cosines = (self._heads(units) * self._heads(mean)).sum(dim=2, keepdim=True)  # (R, k, 1)
            along = (cosines * self._heads(mean)).flatten(start_dim=1)
            return F.linear(units - alpha * along, self._normalized(weight))

    @torch.no_grad()
    def update(self, features: Tensor, is_foreground: Tensor) -> None:
        """
        Add a step's foreground regions to the running mean; a step without any changes nothing.

        A collective: call it in every step, on every process. Does nothing in evaluation mode.

        Args:
            features: (R, D), what :meth:`forward` was given.
            is_foreground: (R,) bool.
        """
        if not self.training:
            return
        weights = is_foreground.to(torch.float64)
        total, count = all_reduce_sum(weights @ features.double(), weights.sum())
        updated = self.mu * self.mean_feature + total / count.clamp(min=1)
        self.mean_feature.copy_(torch.where(count > 0, updated, self.mean_feature))

    def extra_repr(self) -> str:
        own = (
            f"num_heads={self.num_heads}, scale={self.scale:g}, gamma={self.gamma:g}, mu={self.mu}"
        )
        return f"{super().extra_repr()}, {own}"

    def _heads(self, vectors: Tensor) -> Tensor:
        """(N, heads, D / heads) of (N, D)."""
        return vectors.unflatten(1, (self.num_heads, -1))

    def _unit_heads(self, vectors: Tensor) -> Tensor:
        """(N, D), each head's slice of length 1, or 0."""
        heads = self._heads(vectors)
        norm = torch.linalg.vector_norm(heads, dim=2, keepdim=True)
        return (heads / (norm + self.eps)).flatten(start_dim=1)

    def _normalized(self, weight: Tensor) -> Tensor:
        """(out_features, D) weights divided by their length + gamma by head, times S."""
        heads = self._heads(weight)
        norm = torch.linalg.vector_norm(heads, dim=2, keepdim=True)
        # A zero weight row with gamma 0 must stay zero.
        norm = (norm + self.gamma).clamp(min=torch.finfo(norm.dtype).tiny)
        return (heads * (self.scale / self.num_heads / norm)).flatten(start_dim=1)
