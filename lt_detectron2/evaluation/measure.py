"""All metrics of detections on a set with one annotation file, as numbers, tables and files."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import IO

import numpy as np

from .bootstrap import Interval, intervals
from .detections import Detections
from .diagnosis import Errors, calibration_error, diagnose
from .evaluation_files import CURVES_FILE, OUTCOMES_FILE, PER_CATEGORY_FILE, RESULTS_FILE, timed
from .ground_truth import GroundTruth
from .groups import CategoryGroups
from .matching import Matches, match
from .metrics import (
    PrecisionRecall,
    pooled_precision,
    precision_recall,
    recall_of_best,
    summarize,
)
from .options import EvaluationOptions
from .outcomes import Outcomes
from .protocol import Protocol
from .report import (
    calibration_table,
    category_columns,
    errors_table,
    intervals_table,
    per_category_csv,
    per_category_table,
    protocol_lines,
    results_json,
    results_table,
    save_columns,
)

logger = logging.getLogger(__name__)

_MOST_CATEGORIES_IN_LOG = 100
_COCO_CAPS = (1, 10)


@dataclass
class Measurement:
    """
    What came out of an evaluation, by task.

    Args:
        ground_truth: what was found or missed.
        protocol: caps and thresholds.
        partitions: groups of the categories, the first one r, c, f.
        dropped_before: detections that had been set aside before matching.
        results: metrics in percent, nan where there is nothing to measure.
        matches, curves, outcomes: what they were computed from.
        spread: intervals of metrics, in [0, 1]; empty without bootstrap.
        calibration: how far scores can be believed, see `calibration_error`.
        errors: their kinds, of boxes; empty unless asked for.
    """

    ground_truth: GroundTruth
    protocol: Protocol
    partitions: Sequence[CategoryGroups]
    dropped_before: Mapping[str, int]
    results: OrderedDict[str, dict[str, float]] = field(default_factory=OrderedDict)
    matches: dict[str, Matches] = field(default_factory=dict)
    curves: dict[str, PrecisionRecall] = field(default_factory=dict)
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    spread: dict[str, dict[str, Interval]] = field(default_factory=dict)
    calibration: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    errors: dict[str, Errors] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Tables and what must be known to read them."""
        lines = [results_table(self.results)]
        lines += protocol_lines(
            self.matches, self.ground_truth, self.partitions, self.dropped_before
        )
        if self.ground_truth.num_categories <= _MOST_CATEGORIES_IN_LOG:
            lines.append(per_category_table(self.ground_truth, self.partitions[0], self.curves))
        lines += [intervals_table(task, values) for task, values in self.spread.items()]
        lines += [calibration_table(task, values) for task, values in self.calibration.items()]
        lines += [errors_table(task, errors) for task, errors in self.errors.items()]
        return lines

    def files(
        self, dataset_name: str, train_counts: Mapping[str, np.ndarray]
    ) -> dict[str, Callable[[IO], None]]:
        """
        Writers by file name.

        Args:
            train_counts: (K,) `train_images` and `train_instances` where they are known.
        """
        columns = category_columns(self.ground_truth, self.partitions, **train_counts)
        table = per_category_csv(columns, self.curves)
        bootstrap = {
            task: {name: asdict(interval) for name, interval in values.items()}
            for task, values in self.spread.items()
        }
        content = results_json(
            dataset_name,
            self.results,
            self.matches,
            self.ground_truth,
            self.partitions,
            self.dropped_before,
            bootstrap,
            self.calibration,
            self.errors,
        )
        arrays = {
            "category_ids": self.ground_truth.category_ids,
            "iou_thresholds": np.array(self.protocol.iou_thresholds),
            "recall_thresholds": np.array(self.protocol.recall_thresholds),
            "area_ranges": np.array([area.name for area in self.protocol.area_ranges]),
        }
        for task, curve in self.curves.items():
            arrays |= {f"{task}_precision": curve.precision, f"{task}_recall": curve.recall}
        files = {
            OUTCOMES_FILE.format(task=task): partial(save_columns, outcomes.columns())
            for task, outcomes in self.outcomes.items()
        }
        return files | {
            PER_CATEGORY_FILE: lambda file: file.write(table),
            CURVES_FILE: partial(save_columns, arrays),
            RESULTS_FILE: lambda file: file.write(content),
        }


def measure(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_types: Sequence[str],
    protocol: Protocol,
    partitions: Sequence[CategoryGroups],
    options: EvaluationOptions,
) -> Measurement:
    """
    Computes everything that the options ask for.

    With a cap per category the tasks are called bbox_fixed and so on: numbers under different caps
    must not be taken for each other.
    """
    found = Measurement(ground_truth, protocol, partitions, detections.kept.dropped)
    for iou_type in iou_types:
        fixed = protocol.max_dets_per_category is not None
        task = f"{iou_type}_fixed" if fixed else iou_type
        with timed(f"{task}: matched detections with annotations"):
            matches = match(
                ground_truth,
                detections,
                iou_type=iou_type,
                protocol=protocol,
                boundary_dilation=options.boundary_dilation,
            )
        with timed(f"{task}: precision and recall of every category"):
            curves = precision_recall(matches)
            numbers = summarize(curves, *partitions)
            if fixed:
                numbers |= pooled_precision(matches, *partitions)
            if protocol.max_dets_per_cell is not None:
                lower = [cap for cap in _COCO_CAPS if cap < protocol.max_dets_per_cell]
                numbers |= {f"AR@{cap}": recall_of_best(matches, cap) for cap in lower}
        outcomes = Outcomes.from_matches(ground_truth, matches, *partitions)
        if options.bootstrap:
            with timed(f"{task}: bootstrap of {options.bootstrap:,} samples"):
                found.spread[task] = intervals(outcomes, options.bootstrap)
        found.calibration[task] = calibration_error(outcomes)
        if options.errors and iou_type == "bbox":
            with timed(f"{task}: kinds of errors"):
                found.errors[task] = diagnose(ground_truth, detections, matches, *partitions[:1])
        found.results[task] = {name: 100 * value for name, value in numbers.items()}
        found.matches[task], found.curves[task] = matches, curves
        found.outcomes[task] = outcomes
    return found
