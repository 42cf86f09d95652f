"""The two families that most methods belong to, each with one hook: softmax and sigmoid."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.one_pass import OnePass
from ..ops.sigmoid_ce import SIGMOID, BinaryTerms, TermWeights, sigmoid_cross_entropy
from ..ops.softmax_ce import LogitShifts, SoftmaxPart, softmax_cross_entropy
from .base import ClassificationLoss, check_probability


class SoftmaxCrossEntropyLoss(ClassificationLoss):
    """
    Softmax cross entropy over the classes and the background; the baseline of every table.

        loss_i = -log softmax(z_i)[t_i]

    Methods that shift logits override :meth:`logit_shifts`, methods that weight regions by their
    class override :attr:`class_weights`. As it stands it equals Detectron2's loss to the last bit.
    """

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    @property
    def class_weights(self) -> Tensor | None:
        """(K+1,) factor of a region's loss by its target, or None for 1."""
        return None

    def logit_shifts(self, logits: Tensor, targets: Tensor) -> LogitShifts | None:
        """What enters the cross entropy in training instead of logits; not used at test time."""
        return None

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        return self.cross_entropy(logits, targets, reduction).loss

    def cross_entropy(
        self, logits: Tensor, targets: Tensor, reduction: str, **options: Any
    ) -> OnePass:
        """Value and gradient; ``options`` are those of :func:`softmax_cross_entropy`."""
        weights, shifts = self.class_weights, self.logit_shifts(logits, targets)
        if weights is None and shifts is None:
            # The order of summation of "sum" is that of "mean", which Detectron2 uses.
            kind = "sum" if reduction == "mean" else "none"
            losses = F.cross_entropy(logits, targets, reduction=kind)
            return OnePass(losses if kind == "none" else losses / max(len(targets), 1))
        part = SoftmaxPart(
            targets, None if weights is None else weights[targets], shifts=shifts or LogitShifts()
        )
        how = self.implementation
        return softmax_cross_entropy(
            logits, part, reduction=reduction, implementation=how, **options
        )

    def activation(self, logits: Tensor) -> Tensor:
        return F.softmax(logits, dim=-1)


class SigmoidCrossEntropyLoss(ClassificationLoss):
    """
    One binary cross entropy a class; a background region has no positive term.

        loss_i = sum_j w_ij BCE(z_ij, y_ij),  y_ij = [t_i = j],  w_ij = 1

    Methods that re-weight terms override :meth:`term_weights`, methods with another loss of a logit
    override :attr:`terms`. A method with another number of
    columns overrides :attr:`num_logits`: column K, if there is one, is the background's.

    Args:
        prior_probability: probability that every class starts with, through the classifier's bias
            -log((1 - p) / p). Without it the first loss is K log 2, 834 on LVIS.
    """

    def __init__(self, num_classes: int, *, prior_probability: float = 0.001):
        super().__init__(num_classes)
        self.prior_probability = check_probability("prior_probability", prior_probability)

    @property
    def num_logits(self) -> int:
        return self.num_classes

    @property
    def terms(self) -> BinaryTerms:
        """What takes the place of BCE."""
        return SIGMOID

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights | None:
        """Weight w_ij of every term, told by tables; None for 1."""
        return None

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        return self.cross_entropy(logits, targets, reduction).loss

    def cross_entropy(
        self, logits: Tensor, targets: Tensor, reduction: str, **options: Any
    ) -> OnePass:
        """Value and gradient; ``options`` are those of :func:`sigmoid_cross_entropy`."""
        return sigmoid_cross_entropy(
            logits,
            targets,
            self.term_weights(logits, targets),
            background=self.num_classes,
            reduction=reduction,
            implementation=self.implementation,
            **{"terms": self.terms, **options},
        )

    def activation(self, logits: Tensor) -> Tensor:
        return F.pad(logits.sigmoid(), (0, 1))  # nothing is ever called background

    def init_classifier(self, classifier: nn.Linear) -> None:
        nn.init.constant_(classifier.bias, prior_bias(self.prior_probability))


def prior_bias(probability: float) -> float:
    """The logit whose sigmoid is ``probability``: 0.001 gives -6.9068."""
    return -math.log((1 - probability) / probability)
