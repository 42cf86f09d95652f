"""
The contract that every classification loss of this package fulfils.

Shapes and names, here and in all files of the package:

    K: number of foreground classes
    L: number of logits of a region, `loss.num_logits`; its meaning is the loss's own affair
    R: number of regions, over all images of the process; may be 0

    logits:  (R, L) output of the classifier, before any activation
    targets: (R,) int64 class of each region, 0..K, where K is the background
    scores:  (R, K+1) in [0, 1], what inference ranks; the last column is the background
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..statistics import ClassStatistics
from .distributed import all_reduce_sum


class AccumulatingModule(nn.Module):
    """
    A module whose buffers gather what training sees.

    They keep their precision when its model is cast to a narrower type: ``model.bfloat16()`` and
    the like are meant for weights, and in a narrow type a long sum would stop growing.
    """

    @property
    def is_accumulating(self) -> bool:
        """Whether a forward pass changes the state: in training, with gradients recorded."""
        return self.training and torch.is_grad_enabled()

    def _apply(
        self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any
    ) -> AccumulatingModule:
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, *args, **kwargs)
        for name, buffer in exact.items():
            cast = self.get_buffer(name)
            if cast.element_size() < buffer.element_size():
                setattr(self, name, buffer.to(cast.device))
        return self


class ClassificationLoss(AccumulatingModule, ABC):
    """
    Base class of all losses.

    A subclass says how many logits it wants (:attr:`num_logits`), what a region costs
    (:meth:`region_losses`) and what the logits mean at test time (:meth:`activation`). Arguments
    before the ``*`` of its constructor are wired by code; those after it are hyper-parameters, and
    their names and defaults become the config node ``LONG_TAIL.LOSS.<Class>``.

    Args:
        num_classes: K.
    """

    implementation = "torch"
    """"auto", "torch" or "triton", see :mod:`lt_detectron2.ops.implementations`. May be set."""

    def __init__(self, num_classes: int):
        super().__init__()
        if num_classes < 1:
            raise ValueError(
                f"{type(self).__name__} needs at least one foreground class, got {num_classes}: "
                "set num_classes to the number of categories without the background"
            )
        self.num_classes = int(num_classes)

    # ---- what a subclass defines

    @property
    @abstractmethod
    def num_logits(self) -> int:
        """L, the width of the classifier."""

    @abstractmethod
    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        """
        (R,) loss of each region, or with the reduction "mean" their mean, see :func:`reduce`.

        The mean is asked for by itself since its gradient can be computed together with its value.
        ``logits`` are float32 or float64, outside autocast.
        """

    @abstractmethod
    def activation(self, logits: Tensor) -> Tensor:
        """(R, K+1) scores of float32 or float64 logits."""

    def class_logits(self, logits: Tensor) -> Tensor:
        """
        (R, K) part of the logits that belongs to the classes, in their order; with a graph.

        The higher one is, the higher the class's score: it is what a ranking loss compares.
        """
        return logits[:, : self.num_classes]

    def init_classifier(self, classifier: nn.Linear) -> None:
        """Initialise what the method wants otherwise than N(0, 0.01) weights and zero bias."""

    def class_state(self) -> dict[str, Tensor]:
        """(K,) quantities of the training state that are worth logging; most methods have none."""
        return {}

    # ---- what everybody calls

    @property
    def has_background(self) -> bool:
        """Whether a region can be called background; otherwise that score is always 0."""
        return self.num_logits > self.num_classes

    def forward(self, logits: Tensor, targets: Tensor, **region_data: Tensor) -> Tensor:
        """
        Mean of :meth:`region_losses` over all regions, background included.

        Args:
            logits: (R, L), of any floating type; computed in float32 at least.
            targets: (R,) int64 in 0..K.
            region_data: (R,) what a method's :meth:`region_losses` can also be told about each
                region; never required, and nothing for most methods.

        Returns:
            Scalar with a graph, also for R = 0, where it is 0.

        Raises:
            ValueError: shapes, dtype or (on the CPU, where looking is free) range of the targets.
        """
        self._check_logits(logits)
        self._check_targets(logits, targets)
        with torch.autocast(logits.device.type, enabled=False):
            return self.region_losses(
                _at_least_float32(logits), targets, reduction="mean", **region_data
            )

    def scores(self, logits: Tensor) -> Tensor:
        """(R, K+1) scores in [0, 1] of logits (R, L), background last."""
        self._check_logits(logits)
        with torch.autocast(logits.device.type, enabled=False):
            return self.activation(_at_least_float32(logits))

    def accumulate(self, **increments: Tensor) -> None:
        """
        Add to buffers of these names what this step saw, summed over processes.

        Counts only in training, and only where gradients are recorded: a validation loss leaves
        the state alone and activation checkpointing does not count twice. It is a collective: call
        it in every step, on every process, also with no region.
        """
        if not self.is_accumulating:
            return
        with torch.no_grad():
            for name, increment in zip(increments, all_reduce_sum(*increments.values())):
                self.get_buffer(name).add_(increment)

    def uniform(self, shape: Sequence[int], rows: Tensor | None = None) -> Tensor:
        """
        Draw float32 numbers from [0, 1) on the device of the loss's buffers.

        The one source of randomness of the methods that need some; every process draws its own.
        Override it to replay recorded draws. The caller may overwrite them.

        Args:
            shape: of all numbers.
            rows: (M,) int64, those that are wanted, so that M are drawn; None for all.
        """
        size = tuple(shape) if rows is None else (len(rows), *shape[1:])
        return torch.rand(size, device=next(self.buffers()).device)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, num_logits={self.num_logits}"

    # ---- checks

    def _check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 2 or logits.shape[1] != self.num_logits:
            expected = f"({len(logits) if logits.ndim else 'R'}, {self.num_logits})"
            raise ValueError(
                f"{self._label()} expects logits of shape {expected}, got {tuple(logits.shape)}: "
                "size the classifier with loss.num_logits"
            )
        if not logits.is_floating_point():
            raise ValueError(
                f"{self._label()} expects floating point logits, got {logits.dtype}: "
                "pass the classifier's output, not class indices"
            )

    def _check_targets(self, logits: Tensor, targets: Tensor) -> None:
        check_targets(self._label(), logits, targets, self.num_classes)

    def _label(self) -> str:
        return f"{type(self).__name__}({self.num_classes} classes)"


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def reduce(losses: Tensor, reduction: str) -> Tensor:
    """(R,) losses as they are, or with the reduction "mean" their mean; 0 if there is none."""
    return losses.sum() / max(len(losses), 1) if reduction == "mean" else losses


def check_targets(label: str, logits: Tensor, targets: Tensor, num_classes: int) -> None:
    """Raise ValueError unless there is one class, 0..num_classes, for each row of the logits."""
    if targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"{label} expects int64 targets of shape ({len(logits)},), got "
            f"{targets.dtype} of shape {tuple(targets.shape)}: one class index a region"
        )
    # On a GPU this would wait for the device in each step.
    if targets.device.type == "cpu" and not torch.compiler.is_compiling() and len(targets):
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high > num_classes:
            raise ValueError(
                f"{label} expects targets in 0..{num_classes} "
                f"({num_classes} is the background), got {low}..{high}: "
                "remove ignored regions before the loss"
            )


def check_probability(name: str, value: float) -> float:
    """Return a hyper-parameter that must lie strictly between 0 and 1, or raise ValueError."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")
    return float(value)


def check_non_negative(name: str, value: float) -> float:
    """Return a hyper-parameter that must be finite and >= 0, or raise ValueError."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return float(value)


def check_statistics(statistics: ClassStatistics, num_classes: int) -> ClassStatistics:
    """Return the statistics, or raise ValueError if they are of another number of classes."""
    if statistics.num_classes != num_classes:
        raise ValueError(
            f"expected statistics of {num_classes} classes, got {statistics.num_classes}: "
            "count the set that this model is trained on, or set NUM_CLASSES to its categories"
        )
    return statistics
