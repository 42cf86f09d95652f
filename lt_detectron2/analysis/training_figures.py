"""Figures of a training that goes on, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from detectron2.engine import DefaultTrainer

from ..engine.gradient_record import GradientRecord
from ..engine.gradient_recorder import GradientRecorder
from ..statistics import ClassStatistics
from .gradient_ratio import ratio_figure
from .negative_share import share_figure
from .recorded_gradients import RecordedRun
from .style import to_pixels


def log_figures(trainer: DefaultTrainer) -> None:
    """Let a trainer draw what LONG_TAIL.GRADIENT_PERIOD makes it record, if TensorBoard is on."""
    if "tensorboard" not in trainer.cfg.LONG_TAIL.WRITERS:  # nobody else takes pictures away
        return
    for hook in trainer._hooks:
        if isinstance(hook, GradientRecorder):
            hook.draw = draw_gradients


def draw_gradients(record: GradientRecord, statistics: ClassStatistics) -> Mapping[str, np.ndarray]:
    """Pictures (3, height, width) by name of the figures gradient_ratio and negative_share."""
    runs = [RecordedRun("this training", record, statistics)]
    return {
        "ratio": to_pixels(ratio_figure(runs)),
        "negative_share": to_pixels(share_figure(runs)),
    }
