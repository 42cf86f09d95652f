"""Figures of a training that goes on, for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from detectron2.engine import HookBase, hooks
from matplotlib.figure import Figure

from ..engine.gradient_record import GradientRecord
from ..engine.gradient_recorder import GradientRecorder
from ..errors import UserError
from ..statistics import ClassStatistics
from .gradient_ratio import ratio_figure
from .negative_share import share_figure
from .recorded_gradients import RecordedRun
from .results import read_categories
from .run_report.curves import ap_by_count_figure
from .style import to_pixels
from .weight_norms import norms_figure, norms_of_model

if TYPE_CHECKING:
    from ..engine.trainer import LongTailTrainer

logger = logging.getLogger(__name__)

LABEL = "this training"


def log_figures(trainer: LongTailTrainer) -> None:
    """
    Let a trainer draw while it trains, if TensorBoard is on.

    What LONG_TAIL.GRADIENT_PERIOD makes it record is drawn at each snapshot; the AP of the classes
    and the norms of the classifier at each evaluation.
    """
    if "tensorboard" not in trainer.cfg.LONG_TAIL.WRITERS:  # nobody else takes pictures away
        return
    for hook in trainer._hooks:
        if isinstance(hook, GradientRecorder):
            hook.draw = draw_gradients
    writers = [i for i, h in enumerate(trainer._hooks) if isinstance(h, hooks.PeriodicWriter)]
    if writers:  # in the main process; what is drawn after the evaluation is written before the end
        trainer.register_hooks([FiguresOfEvaluations()])
        trainer._hooks.insert(writers[0], trainer._hooks.pop())


def draw_gradients(record: GradientRecord, statistics: ClassStatistics) -> Mapping[str, np.ndarray]:
    """Pictures (3, height, width) by name of the figures gradient_ratio and negative_share."""
    runs = [RecordedRun(LABEL, record, statistics)]
    return {
        "ratio": to_pixels(ratio_figure(runs)),
        "negative_share": to_pixels(share_figure(runs)),
    }


class FiguresOfEvaluations(HookBase):
    """
    Logs a figure of the AP of the classes and one of the norms of the classifier's weights.

    That is after each evaluation of the training. What cannot be drawn is left out, with a warning.
    """

    def after_step(self) -> None:
        done, period = self.trainer.iter + 1, self.trainer.cfg.TEST.EVAL_PERIOD
        if period > 0 and done % period == 0 and done != self.trainer.max_iter:
            self._draw()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._draw()

    def _draw(self) -> None:
        try:
            for name, figure in figures_of_evaluation(self.trainer).items():
                self.trainer.storage.put_image(f"evaluation/{name}", to_pixels(figure))
        except Exception:  # a picture must not cost a training
            logger.warning("The figures for TensorBoard could not be drawn", exc_info=True)


def figures_of_evaluation(trainer: LongTailTrainer) -> dict[str, Figure]:
    """By name, of the model as it is now and of what its evaluation has left in OUTPUT_DIR."""
    figures = {}
    norms = norms_of_model(trainer.model, LABEL)
    if norms is not None:
        figures["weight_norms"] = norms_figure([norms], trainer.statistics)
    try:
        categories = read_categories(trainer.cfg.OUTPUT_DIR)
    except UserError:  # no test set, several, or one without box AP of each class
        return figures
    rows = [(row.group, row.train_images, row.ap) for row in categories.values()]
    return figures | {"ap_by_count": ap_by_count_figure(rows, "bbox")}
