"""Sums of the gradient of the loss by class logits, taken while any loss trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KINDS = ("positive", "foreground", "background")
"""Of which regions a gradient comes: of the class itself, of another class, of the background."""


class GradientSums:
    """
    Accumulates |d loss / d z_ic| of class c over regions i, by the kind of region.

    What is differentiated is all that is trained through the logits of a step: the classification
    loss with its weight and normaliser, a ranking loss, Harmonic coupling. A gradient scaler's
    factor is taken out, and steps whose gradient overflows are left out.

    Nothing waits for the device, and the gradient itself is not changed.

    Args:
        num_classes: K.

    Attributes:
        sums: (3, K) float64, a row for each of KINDS; None before the first step.
        scale_loss: what the loss is multiplied with before it is differentiated; None is 1.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.sums: Tensor | None = None
        self.scale_loss: Callable[[Tensor], Tensor] | None = None

    def watch(
        self, logits: Tensor, targets: Tensor, class_logits: Callable[[Tensor], Tensor]
    ) -> None:
        """
        Count the gradient of these logits when it is there.

        Args:
            logits: (R, L), with a graph.
            targets: (R,) int64 in 0..K.
            class_logits: the (R, K) columns of the classes, as ``ClassificationLoss.class_logits``.
        """
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._add(class_logits(gradient), targets))

    def take(self, device: torch.device) -> Tensor:
        """(3, K) sums since the last call."""
        sums, self.sums = self.sums, None
        if sums is None:  # this process has had no region
            sums = torch.zeros(len(KINDS), self.num_classes, dtype=torch.float64)
        return sums.to(device)

    @torch.no_grad()
    def _add(self, gradient: Tensor, targets: Tensor) -> None:
        magnitude = gradient.float().abs()  # (R, K)
        is_background = (targets == self.num_classes)[:, None]
        own_column = targets.clamp(max=self.num_classes - 1)[:, None]
        own = magnitude.gather(1, own_column).masked_fill(is_background, 0)
        # Without the positives, which are far larger, nothing has to be subtracted afterwards.
        negative = magnitude.scatter_add(1, own_column, -own)
        added = torch.stack(
            [
                torch.zeros_like(negative).scatter(1, own_column, own).sum(dim=0),
                negative.masked_fill(is_background, 0).sum(dim=0),
                negative.masked_fill(~is_background, 0).sum(dim=0),
            ]
        ).double()
        if self.scale_loss is not None:
            added = added / self.scale_loss(torch.ones((), device=added.device))
        added = torch.where(added.isfinite().all(), added, 0)
        self.sums = added if self.sums is None else self.sums + added
