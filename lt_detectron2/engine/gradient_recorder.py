"""A hook that records which gradients each class receives, whatever loss trains."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ..errors import ConfigError
from ..losses.distributed import all_reduce_sum
from ..modeling.gradient_sums import KINDS, GradientSums
from ..statistics import GROUP_NAMES, ClassStatistics
from .gradient_record import GRADIENTS_FILE, GradientRecord

logger = logging.getLogger(__name__)

DrawFigures = Callable[[GradientRecord, ClassStatistics], Mapping[str, np.ndarray]]
"""Pictures (3, height, width) uint8 by name, of what has been recorded so far."""


class GradientRecorder(HookBase):
    """
    Every ``period`` iterations, adds a snapshot to ``OUTPUT_DIR/gradients.npz``.

    It also logs, for each frequency group, the median over its classes of the accumulated positive
    by negative gradient, and of the share of the negatives that other classes' regions give. The
    sums are in the checkpoints, so that a training that resumes goes on with them; of several
    processes, all but the first then lose what they have not added to a snapshot yet.

    Args:
        model: a detector with box heads of this package.
        statistics: counts of the training set.
        folder: OUTPUT_DIR.
        period: iterations between snapshots.

    Attributes:
        draw: what makes pictures of the record for TensorBoard, or None.
    """

    def __init__(self, model: nn.Module, statistics: ClassStatistics, folder: str, period: int):
        heads = getattr(getattr(model, "module", model), "roi_heads", None)
        stages = getattr(heads, "box_stages", None)
        if stages is None:
            raise ConfigError(
                "LONG_TAIL.GRADIENT_PERIOD records gradients of the class logits of box heads, and "
                "this model has none of ours: use LongTailROIHeads or LongTailCascadeROIHeads, or "
                "set it to 0"
            )
        num_classes = statistics.num_classes
        self.stage_sums = [GradientSums(num_classes) for _ in stages]
        for sums, (_, predictor) in zip(self.stage_sums, stages):
            predictor.gradient_sums = sums
        self.statistics = statistics
        self.path = os.path.join(folder, GRADIENTS_FILE)
        self.period = period
        self.draw: DrawFigures | None = None
        self.total = torch.zeros(len(stages), len(KINDS), num_classes, dtype=torch.float64)
        self.record = GradientRecord.empty(len(stages), num_classes)

    def before_train(self) -> None:
        scaler = getattr(self.trainer._trainer, "grad_scaler", None)
        for sums in self.stage_sums:
            sums.scale_loss = None if scaler is None else scaler.scale

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period and done != self.trainer.max_iter:
            return
        self._collect()
        if not comm.is_main_process():
            return
        self.record = self.record.with_snapshot(done, self.total.numpy())
        self.record.save(self.path)
        self._log()

    def state_dict(self) -> dict[str, Any]:
        device = self.total.device
        pending = [s.sums for s in self.stage_sums]
        added = [torch.zeros_like(self.total[0]) if p is None else p.to(device) for p in pending]
        return {"total": self.total + torch.stack(added)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"].cpu()
        if os.path.isfile(self.path):
            self.record = GradientRecord.load(self.path).until(self.trainer.iter + 1)

    def _collect(self) -> None:
        """Add what all processes have counted. A collective."""
        device = next(self.trainer.model.parameters()).device
        counted = torch.stack([sums.take(device) for sums in self.stage_sums])
        self.total = self.total + all_reduce_sum(counted)[0].cpu()

    def _log(self) -> None:
        group = self.statistics.frequency_group().numpy()
        latest = {
            "ratio": self.record.ratio()[-1],
            "foreground_share": self.record.foreground_share()[-1],
        }
        for index, name in enumerate(GROUP_NAMES):
            for quantity, values in latest.items():
                known = values[(group == index) & ~np.isnan(values)]
                if len(known):
                    key = f"gradients/{quantity}_{name}"
                    self.trainer.storage.put_scalar(key, np.median(known), smoothing_hint=False)
        if self.draw is not None:
            for name, picture in self.draw(self.record, self.statistics).items():
                self.trainer.storage.put_image(f"gradients/{name}", picture)


def build_gradient_recorder(
    cfg: CfgNode, model: nn.Module, statistics: ClassStatistics
) -> GradientRecorder | None:
    """The recorder that LONG_TAIL.GRADIENT_PERIOD asks for; None for 0."""
    period = cfg.LONG_TAIL.GRADIENT_PERIOD
    if period < 0:
        raise ConfigError(f"LONG_TAIL.GRADIENT_PERIOD must be 0 (off) or more, got {period}")
    return GradientRecorder(model, statistics, cfg.OUTPUT_DIR, period) if period else None
