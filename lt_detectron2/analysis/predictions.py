"""
Ground truth and the detections of one or more runs side by side, coloured by frequency group.

    python -m lt_detectron2.analysis.predictions RUN RUN --dataset synthlt_demo_val

Each panel shows as many detections as the image has objects, the best first: scores of different
methods are not on one scale, but their order means the same. Of detections that cover the same
object, the best is shown, so that a panel says what the detector takes each object for. Shown are
the images on which the first and the last run differ most, whichever is better there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from .results import CategoryResult, read_categories
from .style import GROUP_COLOURS, new_figure, save

SAME_OBJECT_IOU = 0.5


def draw(
    runs: Sequence[str | Path],
    labels: Sequence[str],
    records: Sequence[dict[str, Any]],
    path: str | Path,
    num_images: int = 3,
) -> Path:
    """
    Args:
        runs: output folders of evaluated runs; the first is the baseline.
        labels: a title for each.
        records: the validation set, with boxes as x, y, width, height.
        num_images: how many to show.
    """
    categories = read_categories(runs[0])
    detections = [_read_detections(run) for run in runs]
    chosen = most_different(records, detections[0], detections[-1], num_images)
    figure, grid = new_figure(
        2.9 * (len(runs) + 1), 3.05 * len(chosen), nrows=len(chosen), ncols=len(runs) + 1
    )
    grid = np.atleast_2d(grid)
    for axes, title in zip(grid[0], ["ground truth", *labels]):
        axes.set_title(title, fontsize=10)
    for row, record in zip(grid, chosen):
        image = Image.open(record["file_name"]).convert("RGB")
        truth = _objects(record)
        panels = [truth] + [_best(d, record["image_id"], len(truth)) for d in detections]
        for axes, panel in zip(row, panels):
            _draw_panel(axes, image, panel, categories)
    return save(figure, path)


def most_different(
    records: Sequence[dict[str, Any]],
    first: dict[str, np.ndarray],
    second: dict[str, np.ndarray],
    count: int,
) -> list[dict[str, Any]]:
    """Images on which two runs name the most different numbers of objects right."""

    def difference(record: dict[str, Any]) -> int:
        objects = _objects(record)
        right = [
            _num_right(_best(run, record["image_id"], len(objects)), objects)
            for run in (first, second)
        ]
        return abs(right[1] - right[0])

    return sorted(records, key=difference, reverse=True)[:count]


def _objects(record: dict[str, Any]) -> list[tuple]:
    return [(np.array(a["bbox"]), a["category_id"] + 1, None) for a in record["annotations"]]


def _num_right(detections: list[tuple], objects: list[tuple]) -> int:
    return sum(
        any(c == category and _iou(found, box) >= SAME_OBJECT_IOU for found, c, _ in detections)
        for box, category, _ in objects
    )


def _read_detections(run: str | Path) -> dict[str, np.ndarray]:
    with np.load(Path(run) / "inference" / "detections.npz", allow_pickle=False) as columns:
        return {name: columns[name] for name in ("image_ids", "category_ids", "scores", "boxes")}


def _best(detections: dict[str, np.ndarray], image_id: int, count: int) -> list[tuple]:
    rows = np.flatnonzero(detections["image_ids"] == image_id)
    shown: list[int] = []
    for i in rows[np.argsort(-detections["scores"][rows], kind="stable")]:
        boxes = detections["boxes"]
        if len(shown) < count and all(_iou(boxes[i], boxes[j]) < SAME_OBJECT_IOU for j in shown):
            shown.append(i)
    return [
        (detections["boxes"][i], int(detections["category_ids"][i]), detections["scores"][i])
        for i in shown
    ]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes x, y, width, height."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    intersection = sides.clip(min=0).prod()
    return intersection / (a[2:].prod() + b[2:].prod() - intersection)


def _draw_panel(
    axes: Axes, image: Image.Image, objects: list[tuple], categories: dict[int, CategoryResult]
) -> None:
    axes.imshow(image)
    axes.set_axis_off()
    for (x, y, width, height), category_id, score in objects:
        category = categories[category_id]
        colour = GROUP_COLOURS.get(category.group, "white")
        axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.4)
        )
        text = category.name.replace("_", " ") + (f" {score:.2f}" if score is not None else "")
        # On the right half a label ends with its box, so that it stays inside the picture.
        is_right = x > image.width / 2
        label = axes.text(
            min(x + width, image.width) if is_right else x,
            max(y - 1.5, 5),
            f"{text} [{category.group[0]}]",
            fontsize=5.5,
            ha="right" if is_right else "left",
            color="white",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )
        label.set_in_layout(False)  # a long name must not shrink the pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("runs", nargs="+", help="output folders of evaluated runs")
    parser.add_argument("--dataset", required=True, help="the registered set they were tested on")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--output", default="predictions.png")
    arguments = parser.parse_args()
    from detectron2.data import DatasetCatalog

    from ..data import datasets  # noqa: F401

    records = DatasetCatalog.get(arguments.dataset)
    labels = [Path(run).name for run in arguments.runs]
    print(draw(arguments.runs, labels, records, arguments.output, arguments.images))


if __name__ == "__main__":
    main()
