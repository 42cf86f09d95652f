"""Equilibrium loss of LOCE (ICCV 2021, https://arxiv.org/abs/2108.07507)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import LogitShifts, SoftmaxPart, softmax_cross_entropy
from .base import check_probability
from .cross_entropy import SoftmaxCrossEntropyLoss
from .distributed import all_reduce_sum

INITIAL_SCORE = 0.01


class EquilibriumLoss(SoftmaxCrossEntropyLoss):
    """
    Softmax cross entropy with margins from what each class scores on its own objects.

        loss_i = -log softmax(z_i + log s)[t_i],   score = softmax(z) at test time

    s_j is the running mean of softmax(z)_j over objects of class j: a class that is already
    recognised with confidence pushes weaker ones less. With m observations of a class in a step,

        s_j <- momentum^m s_j + (1 - momentum^m) mean of the observations

    before the loss is computed. An observation is the mean score over the regions of one object,
    if :meth:`region_losses` is told ``object_ids``; else each class that occurs in a step, over all
    processes, is observed once, by the mean over its regions.

    LOCE's other half, memory-augmented feature sampling, appends stored features of weak classes to
    the batch. It works on features, so it is no matter of a loss: ``lt_detectron2.modeling.loce``
    has it. Such rows get an object id of their own for each class. The method is a second stage
    that trains classifier, box regression, RPN and mask head of a detector with normalised mask
    predictor.

    Args:
        momentum: weight of the old mean against one observation; 1 never moves it, which is
            softmax cross entropy if the background score is 0.01.
        background_score: s of the background, held constant. Classes start at 0.01.
    """

    def __init__(
        self, num_classes: int, *, momentum: float = 0.9, background_score: float = INITIAL_SCORE
    ):
        super().__init__(num_classes)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in 0..1, got {momentum}")
        self.momentum = float(momentum)
        self.background_score = check_probability("background_score", background_score)
        mean_score = torch.full((num_classes + 1,), INITIAL_SCORE, dtype=torch.float64)
        mean_score[-1] = self.background_score
        self.register_buffer("mean_score", mean_score)  # (K+1,), background last

    def logit_shifts(self, logits: Tensor, targets: Tensor) -> LogitShifts:
        tiny = torch.finfo(self.mean_score.dtype).tiny
        return LogitShifts(offset=self.mean_score.clamp(min=tiny).log())

    def region_losses(
        self,
        logits: Tensor,
        targets: Tensor,
        reduction: str = "none",
        object_ids: Tensor | None = None,
    ) -> Tensor:
        """
        (R,) loss of each region, or their mean.

        Args:
            object_ids: (R,) int64, equal where regions belong to the same object, different
                between images of the process. Those of background regions are not read.
        """
        self._observe(logits, targets, object_ids)
        return super().region_losses(logits, targets, reduction)

    def class_state(self) -> dict[str, Tensor]:
        return {"mean_score": self.mean_score[:-1]}

    @torch.no_grad()
    def _update(self, total: Tensor, count: Tensor, observations: Tensor) -> None:
        keep = self.momentum**observations
        mean = total / count.clamp(min=torch.finfo(count.dtype).tiny)
        self.mean_score[:-1] = (keep * self.mean_score + (1 - keep) * mean)[:-1]

    def _observe(self, logits: Tensor, targets: Tensor, object_ids: Tensor | None) -> None:
        if not self.is_accumulating:
            return
        part, how = SoftmaxPart(targets), self.implementation
        plain = softmax_cross_entropy(logits.detach(), part, implementation=how).loss
        scores = (-plain).exp().double()
        share = torch.ones_like(scores)  # of a region in an observation
        if object_ids is not None:
            same_object = (object_ids == object_ids[:, None]) & (targets == targets[:, None])
            share = share / same_object.sum(dim=1)
        zeros = torch.zeros_like(self.mean_score)
        total, count = all_reduce_sum(
            zeros.scatter_add(0, targets, share * scores), zeros.scatter_add(0, targets, share)
        )
        self._update(total, count, count if object_ids is not None else (count > 0).double())
