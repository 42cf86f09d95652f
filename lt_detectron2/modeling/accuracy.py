"""Training accuracy of the classifier by frequency group, counted on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..statistics import GROUP_NAMES

LOG_PERIOD = 20
"""Iterations between two log entries; Detectron2's writers have the same period."""


COUNT_PERIOD = 5
"""Iterations of which one is counted; divides LOG_PERIOD."""


class ClassificationMonitor(nn.Module):
    """
    Counts how often the best score is the right one, and logs it every ``LOG_PERIOD`` iterations.

    One of ``COUNT_PERIOD`` iterations is counted, since it takes the scores of all regions.

    Writes ``fast_rcnn/cls_accuracy``, ``fg_cls_accuracy`` and ``false_negative`` (foreground taken
    for background), as Detectron2 does, and ``fg_cls_accuracy_rare`` etc. if groups are known.
    Where nothing is ever called background, only what foreground regions tell is written: no
    background region could be right, and none of the foreground be missed.

    Args:
        num_classes: K.
        frequency_group: (K,) group of each class, see ClassStatistics; None logs no groups.
        has_background: whether the background's score is ever above 0.
    """

    def __init__(
        self,
        num_classes: int,
        frequency_group: Tensor | None = None,
        *,
        has_background: bool = True,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.has_background = has_background
        self.has_groups = frequency_group is not None
        group = torch.zeros(num_classes, dtype=torch.int64)
        if frequency_group is not None:
            group = frequency_group.clone()
        background = torch.tensor([len(GROUP_NAMES)])
        # Groups 0..2, and the background as a fourth one.
        self.register_buffer("group", torch.cat([group, background]), persistent=False)
        # Rows: regions, right, taken for background. Columns: groups.
        counts = torch.zeros(3, len(GROUP_NAMES) + 1, dtype=torch.int64)
        self.register_buffer("counts", counts, persistent=False)
        self._last_logged = -1

    @torch.no_grad()
    def update(
        self, make_scores: Callable[[Tensor], Tensor], logits: Tensor, targets: Tensor
    ) -> None:
        """
        Count the regions and log, if this iteration is one to.

        Args:
            make_scores: from the logits to scores (R, K+1); called if they are needed.
            logits: (R, L).
            targets: (R,).
        """
        iteration = get_event_storage().iter
        if (iteration + 1) % COUNT_PERIOD:
            return
        self._count(make_scores(logits), targets)
        # Once, though an iteration may come in parts.
        if is_log_iteration() and iteration != self._last_logged:
            self._last_logged = iteration
            self._log()

    def _count(self, scores: Tensor, targets: Tensor) -> None:
        predicted = scores.argmax(dim=1)
        group = self.group[targets]
        hits = torch.stack(
            [torch.ones_like(targets), predicted == targets, predicted == self.num_classes]
        )
        self.counts.scatter_add_(1, group.expand(3, -1), hits)

    def _log(self) -> None:
        regions, right, missed = self.counts.tolist()
        self.counts.zero_()
        storage = get_event_storage()

        def put(name: str, part: int, whole: int) -> None:
            if whole:
                storage.put_scalar(f"fast_rcnn/{name}", part / whole)

        put("fg_cls_accuracy", sum(right[:-1]), sum(regions[:-1]))
        if self.has_background:
            put("cls_accuracy", sum(right), sum(regions))
            put("false_negative", sum(missed[:-1]), sum(regions[:-1]))
        if self.has_groups:
            for name, part, whole in zip(GROUP_NAMES, right, regions):
                put(f"fg_cls_accuracy_{name}", part, whole)

    @torch.no_grad()
    def log_class_state(self, class_state: dict[str, Tensor]) -> None:
        """Log the mean by group of (K,) quantities of a loss, if this iteration is one to."""
        if not (class_state and is_log_iteration()):
            return
        storage = get_event_storage()
        group = self.group[:-1]
        names = GROUP_NAMES if self.has_groups else ("all",)
        sizes = torch.bincount(group, minlength=len(names)).clamp(min=1)
        for quantity, values in class_state.items():
            means = torch.zeros(len(names), dtype=values.dtype, device=values.device)
            means = means.scatter_add_(0, group, values) / sizes
            for name, mean in zip(names, means.tolist()):
                storage.put_scalar(f"loss_state/{quantity}_{name}", mean)


def is_log_iteration() -> bool:
    """Whether scalars of this iteration are going to be written."""
    return (get_event_storage().iter + 1) % LOG_PERIOD == 0
