"""Numbers for people and files: tables, `per_category.csv` and `results.json`."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np

from .bootstrap import Interval
from .diagnosis import Errors
from .ground_truth import GroundTruth
from .groups import CategoryGroups
from .matching import Matches
from .metrics import PrecisionRecall

ABSENT = "n/a"

Numbers = Mapping[str, float]
"""Metrics in percent by name; nan where there is nothing to measure."""


def format_number(value: float, digits: int = 2) -> str:
    """The number, or "n/a" for nan."""
    return ABSENT if math.isnan(value) else f"{value:.{digits}f}"


def format_count(value: int) -> str:
    """The count, or "n/a" for -1, which is one that nobody knows."""
    return ABSENT if value < 0 else f"{value:,}"


def results_table(results: Mapping[str, Numbers]) -> str:
    """One line per task, one column per metric, in percent."""
    metrics = list(dict.fromkeys(name for numbers in results.values() for name in numbers))
    rows = [
        [task, *(format_number(numbers.get(name, math.nan)) for name in metrics)]
        for task, numbers in results.items()
    ]
    return text_table(["task", *metrics], rows)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first one to the left."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
        return "| " + " | ".join([first, *others]) + " |"

    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(ruler), *(line(row) for row in rows)])


def protocol_lines(
    matches: Mapping[str, Matches],
    ground_truth: GroundTruth,
    partitions: Sequence[CategoryGroups],
    dropped_before: Mapping[str, int],
) -> list[str]:
    """
    What a reader must know before comparing the numbers with others.

    Args:
        dropped_before: what had been set aside before matching.
    """
    annotated = ground_truth.instance_count > 0
    lines = [
        f"{next(iter(matches.values())).protocol.describe()}",
        f"categories with annotations: {np.count_nonzero(annotated)} of "
        f"{ground_truth.num_categories}",
        *(f"  {groups.describe(annotated)}" for groups in partitions),
    ]
    for task, outcome in matches.items():
        total = _total(outcome, dropped_before)
        dropped = ", ".join(f"{count:,} {why}" for why, count in total.items())
        lines.append(f"{task}: {len(outcome.rows):,} detections count, left out: {dropped}")
    return lines


def per_category_table(
    ground_truth: GroundTruth, groups: CategoryGroups, curves: Mapping[str, PrecisionRecall]
) -> str:
    """AP of every category in percent, in two columns side by side."""
    header = ["category", "group", *(f"{task} AP" for task in curves)]
    values = [curve.category_ap().tolist() for curve in curves.values()]
    rows = [
        [name, label or ABSENT, *(format_number(100 * value) for value in aps)]
        for name, label, *aps in zip(ground_truth.category_names, groups.labels(), *values)
    ]
    half = (len(rows) + 1) // 2
    if half < 2:
        return text_table(header, rows)
    rows.append([""] * len(header))
    sides = [left + right for left, right in zip(rows[:half], rows[half : 2 * half])]
    return text_table(header * 2, sides)


def intervals_table(task: str, values: Mapping[str, Interval]) -> str:
    """Metrics in percent with their spread over samples of the images."""
    rows = []
    for name, interval in values.items():
        numbers = (interval.value, interval.standard_error, interval.low, interval.high)
        value, error, low, high = (format_number(100 * number) for number in numbers)
        rows.append([name, value, error, low, high])
    header = [f"{task}, bootstrap", "value", "std. error", "2.5 %", "97.5 %"]
    return text_table(header, rows)


def calibration_table(task: str, values: Mapping[str, Numbers]) -> str:
    """Mean score, share of right detections and calibration error of each group, in percent."""
    header = [f"{task}, IoU 0.5", "detections", "mean score", "right", "calibration error"]
    rows = [
        [
            name.lstrip("_"),
            f"{numbers['detections']:,}",
            *(format_number(100 * numbers[key]) for key in ("score", "precision", "ECE")),
        ]
        for name, numbers in values.items()
    ]
    return text_table(header, rows)


def errors_table(task: str, errors: Errors) -> str:
    """How often each kind of error occurs, and the AP50 in percent that its repair would gain."""
    metrics = next(iter(errors.gains.values()))
    rows = [
        [kind, f"{errors.counts[kind]:,}", *(format_number(100 * v) for v in gains.values())]
        for kind, gains in errors.gains.items()
    ]
    header = [f"{task}, errors at IoU 0.5", "number", *(f"gain of {name}50" for name in metrics)]
    return text_table(header, rows)


def category_columns(
    ground_truth: GroundTruth,
    partitions: Sequence[CategoryGroups],
    train_images: np.ndarray | None = None,
    train_instances: np.ndarray | None = None,
) -> dict[str, Sequence[str]]:
    """
    What is known of each category before anything is evaluated, as K texts by column.

    Args:
        partitions: the first one is the column "group", a second one the column "bin".
        train_images: (K,) images of the training set with the category, -1 where not known.
        train_instances: (K,) its annotations there, -1 where not known.
    """
    columns: dict[str, Sequence[str]] = {
        "category_id": [str(id) for id in ground_truth.category_ids],
        "name": ground_truth.category_names,
    }
    for name, groups in zip(("group", "bin"), partitions):
        columns[name] = [label.lstrip("_") or ABSENT for label in groups.labels()]
    num_categories = ground_truth.num_categories
    return columns | {
        "train_images": _counts(train_images, num_categories),
        "train_instances": _counts(train_instances, num_categories),
        "val_images": _counts(ground_truth.image_count, num_categories),
        "val_instances": _counts(ground_truth.instance_count, num_categories),
    }


def per_category_csv(
    columns: Mapping[str, Sequence[str]], curves: Mapping[str, PrecisionRecall]
) -> str:
    """
    One line for each category; metrics in percent, "n/a" where there is nothing to measure.

    Args:
        columns: see `category_columns`.
        curves: by task.
    """
    columns = dict(columns)
    for task, curve in curves.items():
        for name, values in (
            ("AP", curve.category_ap()),
            ("AP50", curve.category_ap(iou=0.5)),
            ("AR", curve.category_ar()),
        ):
            columns[f"{task}_{name}"] = [format_number(100 * v, 4) for v in values.tolist()]
    return csv_text(columns)


def csv_text(columns: Mapping[str, Sequence[str]]) -> str:
    """A CSV file of columns by name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values()))
    return text.getvalue()


def save_columns(columns: Mapping[str, np.ndarray], file: IO) -> None:
    """An npz file of arrays by name."""
    np.savez(file, **columns)


def results_json(
    dataset_name: str,
    results: Mapping[str, Numbers],
    matches: Mapping[str, Matches],
    ground_truth: GroundTruth,
    partitions: Sequence[CategoryGroups],
    dropped_before: Mapping[str, int],
    bootstrap: Mapping[str, Mapping[str, Mapping[str, float]]],
    calibration: Mapping[str, Mapping[str, Numbers]],
    errors: Mapping[str, Errors],
) -> str:
    """
    Everything but the curves; metrics in percent, null where there is nothing to measure.

    Args:
        dropped_before: what had been set aside before matching.
        bootstrap: by task and metric, the fields of an `Interval` in [0, 1].
        calibration: by task and group, see `calibration_error`; stays in [0, 1].
        errors: by task.
    """
    annotated = ground_truth.instance_count > 0
    protocol = next(iter(matches.values())).protocol
    content = {
        "dataset": dataset_name,
        "annotations": ground_truth.fingerprint,
        "protocol": {
            **{f"max_dets_per_{name}": cap for name, cap in protocol.caps().items()},
            "iou_thresholds": protocol.iou_thresholds,
            "area_ranges": {name: [low, high] for name, low, high in protocol.area_ranges},
        },
        "groups": [groups_summary(groups, annotated) for groups in partitions],
        "num_images": ground_truth.num_images,
        "num_annotations": int(ground_truth.instance_count.sum()),
        "num_categories": ground_truth.num_categories,
        "num_categories_with_annotations": int(np.count_nonzero(annotated)),
        "detections": {
            task: {"counted": len(outcome.rows), "left_out": _total(outcome, dropped_before)}
            for task, outcome in matches.items()
        },
        "results": {task: without_nan(numbers) for task, numbers in results.items()},
        "calibration": {
            task: {name: without_nan(numbers) for name, numbers in groups.items()}
            for task, groups in calibration.items()
        },
    }
    if errors:
        content["errors"] = {
            task: {
                kind: {
                    "number": found.counts[kind],
                    "gains": without_nan({name: 100 * gain for name, gain in gains.items()}),
                }
                for kind, gains in found.gains.items()
            }
            for task, found in errors.items()
        }
    if bootstrap:
        content["bootstrap"] = {
            task: {
                name: without_nan({key: 100 * value for key, value in fields.items()})
                for name, fields in values.items()
            }
            for task, values in bootstrap.items()
        }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def groups_summary(groups: CategoryGroups, annotated: np.ndarray) -> dict:
    """Source, rule and sizes of a partition; `annotated` (K,) bool."""
    members = {name: groups.members(name) for name in groups.names}
    return {
        "source": groups.source,
        "rule": groups.rule,
        "categories": {name: len(rows) for name, rows in members.items()},
        "categories_with_annotations": {
            name: int(np.count_nonzero(annotated[rows])) for name, rows in members.items()
        },
    }


def _total(matches: Matches, dropped_before: Mapping[str, int]) -> dict[str, int]:
    total = Counter(matches.dropped)
    total.update(dropped_before)
    return dict(total)


def without_nan(numbers: Numbers) -> dict[str, float | None]:
    """The same with None for nan, as JSON needs it."""
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}


def _counts(values: np.ndarray | None, length: int) -> list[str]:
    values = np.full(length, -1) if values is None else values
    return [str(value) if value >= 0 else ABSENT for value in values.tolist()]
