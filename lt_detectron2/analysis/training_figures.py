"""Figures of a training that goes on, for TensorBoard."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.engine import HookBase, hooks
from matplotlib.figure import Figure

from ..data.shared_records import parse_once
from ..engine.class_means import annotated_image_mapper
from ..engine.gradient_record import GradientRecord
from ..engine.gradient_recorder import GradientRecorder
from ..engine.modes import in_test_mode
from ..engine.stop import StopRequested
from ..errors import UserError
from ..evaluation.evaluation_files import DETECTIONS_FILE
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.saved import SavedDetections
from ..random_state import keeping_random_state
from ..statistics import ClassStatistics
from .confusion import confuse_in_parts, confusion_figure
from .gradient_ratio import ratio_figure
from .negative_share import share_figure
from .predictions import by_image, panels_figure
from .recorded_gradients import RecordedRun
from .results import CategoryResult, evaluation_folder, read_categories, read_ground_truth
from .run_report.curves import ap_by_count_figure
from .run_report.examples import example, with_rarest_objects
from .score_ranks import class_errors, errors_figure, scores_of_regions
from .style import closing_unfinished, to_pixels
from .weight_norms import norms_figure, norms_of_model

if TYPE_CHECKING:
    from ..engine.trainer import LongTailTrainer

logger = logging.getLogger(__name__)

LABEL = "this training"
NUM_SHOWN = 4
"""Images of the figure of predictions."""
NUM_SCORED = 100
"""Most images of which regions are scored, for the figure of rank errors."""


def log_figures(trainer: LongTailTrainer) -> None:
    """
    Let a trainer draw while it trains, if TensorBoard is on.

    What LONG_TAIL.GRADIENT_PERIOD makes it record is drawn at each snapshot; FIGURES are drawn at
    each evaluation.
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
    pictures = {
        "ratio": _picture("ratio", ratio_figure, runs),
        "negative_share": _picture("negative_share", share_figure, runs),
    }
    return {name: picture for name, picture in pictures.items() if picture is not None}


def _picture(name: str, make: Callable[[Any], Figure | None], of: Any) -> np.ndarray | None:
    """A figure's pixels; None where there is nothing to draw, or with a warning where it fails."""
    try:
        with closing_unfinished():
            figure = make(of)
            return None if figure is None else to_pixels(figure)
    except Exception:  # a picture must not cost a training
        logger.warning("The figure %s could not be drawn", name, exc_info=True)
        return None


class EvaluatedTraining:
    """
    What figures look at: a training, and what its latest evaluation has left in OUTPUT_DIR.

    Annotations are loaded when a figure asks for them, as the evaluation before has done, and go
    with this object; of the detections, no more is in memory than is looked at.

    Args:
        trainer: with its model as it is now.
        records: of images that show the rarest classes, by image id and the rarest first, of an
            earlier evaluation; without them they are looked for.
    """

    def __init__(self, trainer: LongTailTrainer, records: dict[int, dict[str, Any]] | None = None):
        self.cfg, self.statistics = trainer.cfg, trainer.statistics
        self.model = getattr(trainer.model, "module", trainer.model)
        self._records = records

    @cached_property
    def categories(self) -> dict[int, CategoryResult] | None:
        """By id; None without results of one test set for each class."""
        try:
            return read_categories(self.cfg.OUTPUT_DIR)
        except UserError:
            return None

    @cached_property
    def ground_truth(self) -> GroundTruth:
        return read_ground_truth(self.cfg.OUTPUT_DIR)

    @cached_property
    def detections(self) -> SavedDetections:
        return SavedDetections(evaluation_folder(self.cfg.OUTPUT_DIR) / DETECTIONS_FILE)

    @cached_property
    def records(self) -> dict[int, dict[str, Any]]:
        """See the constructor; at most NUM_SCORED."""
        if self._records is not None:
            return self._records
        positions = with_rarest_objects(self.ground_truth, self.categories, NUM_SCORED)
        ids = self.ground_truth.image_ids[positions].tolist()
        (name,) = self.cfg.DATASETS.TEST
        wanted = set(ids)
        found = {r["image_id"]: r for r in parse_once(name) if r["image_id"] in wanted}
        return {id: found[id] for id in ids}


def weight_norms(of: EvaluatedTraining) -> Figure | None:
    norms = norms_of_model(of.model, LABEL)
    return None if norms is None else norms_figure([norms], of.statistics)


def ap_by_count(of: EvaluatedTraining) -> Figure | None:
    if of.categories is None:
        return None
    rows = [
        (row.group, row.train_images, row.ap)
        for row in of.categories.values()
        if row.train_images >= 0 and not math.isnan(row.ap)
    ]
    return ap_by_count_figure(rows, "bbox") if rows else None


def confusion(of: EvaluatedTraining) -> Figure | None:
    if of.categories is None:
        return None
    counted = confuse_in_parts(of.ground_truth, of.detections.parts())
    return confusion_figure(counted, of.categories)


def predictions(of: EvaluatedTraining) -> Figure | None:
    """The same images at each evaluation."""
    if of.categories is None:
        return None
    shown = list(of.records.values())[:NUM_SHOWN]
    ids = [record["image_id"] for record in shown]
    positions = np.searchsorted(of.ground_truth.image_ids, ids)
    found = by_image(of.detections.of_images(ids))
    examples = [
        example(of.ground_truth, position, found, record["file_name"])
        for position, record in zip(positions, shown)
    ]
    return panels_figure(*zip(*examples), ["ground truth", "detections"], of.categories)


def score_ranks(of: EvaluatedTraining) -> Figure | None:
    """Of the same regions at each evaluation, if the RPN proposed the same."""
    heads = getattr(of.model, "roi_heads", None)
    if of.categories is None or not hasattr(heads, "box_stages"):
        return None
    mapper = annotated_image_mapper(of.cfg)
    with keeping_random_state(), in_test_mode(of.model):
        torch.manual_seed(max(of.cfg.SEED, 0))
        batches = ([mapper(record)] for record in of.records.values())
        errors = class_errors(scores_of_regions(of.model, batches))
    return errors_figure(errors, of.statistics)


FIGURES: dict[str, Callable[[EvaluatedTraining], Figure | None]] = {
    figure.__name__: figure
    for figure in (weight_norms, ap_by_count, confusion, predictions, score_ranks)
}
"""What is drawn at each evaluation; None where there is nothing to draw."""


class FiguresOfEvaluations(HookBase):
    """
    Logs FIGURES after each evaluation of the training.

    What cannot be drawn is left out, with a warning; and so is what is not yet drawn when the
    training is asked to stop.
    """

    def __init__(self) -> None:
        self._records: dict[int, dict[str, Any]] | None = None

    def after_step(self) -> None:
        done, period = self.trainer.iter + 1, self.trainer.cfg.TEST.EVAL_PERIOD
        if period > 0 and done % period == 0 and done != self.trainer.max_iter:
            self._draw()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._draw()

    def _draw(self) -> None:
        evaluated = EvaluatedTraining(self.trainer, self._records)
        try:
            with self.trainer.stop.at_once():
                for name, make in FIGURES.items():
                    picture = _picture(name, make, evaluated)
                    if picture is not None:
                        self.trainer.storage.put_image(f"evaluation/{name}", picture)
        except StopRequested:
            pass  # saves nothing here: all processes do that together, after a step
        self._records = vars(evaluated).get("records")
