"""
Ground truth and the detections of one or more runs side by side, coloured by frequency group.

    python -m lt_detectron2.analysis.predictions output/softmax output/eqlv2

Each panel shows as many detections as the image has objects, the best first: scores of different
methods are not on one scale, but their order means the same. Of detections that cover the same
object, the best is shown, so that a panel says what the detector takes each object for. Shown are
the images on which the first and the last run differ most, whichever is better there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..evaluation import Detections
from .boxes import pairwise_iou
from .drawing import LabelledObject, draw_objects
from .program import add_runs, draw_and_exit, figure_parser, labels_of
from .results import CategoryResult, evaluated_dataset, read_categories, read_detections
from .style import new_figure, save

SAME_OBJECT_IOU = 0.5
PANEL_INCHES = 2.9


@dataclass(frozen=True)
class Objects:
    """Boxes (N, 4) as x, y, width, height, their category ids (N,), and scores (N,) or None."""

    boxes: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray | None = None


def draw(
    runs: Sequence[str | Path],
    labels: Sequence[str],
    records: Sequence[dict[str, Any]],
    path: str | Path,
    num_images: int = 3,
) -> Path:
    """
    The pictures; the CSV lists what is drawn in them.

    Args:
        runs: output folders of evaluated runs; the first is the baseline.
        labels: a title for each.
        records: the validation set, with boxes as x, y, width, height.
        num_images: how many to show.
    """
    categories = read_categories(runs[0])
    found = [by_image(read_detections(run)) for run in runs]
    chosen = most_different(records, sorted(categories), found[0], found[-1], num_images)
    titles = ["ground truth", *labels]
    images, panels, rows = [], [], []
    for record in chosen:
        images.append(Image.open(record["file_name"]).convert("RGB"))
        truth = objects_of(record, sorted(categories))
        panels.append([truth] + [shown(run.get(record["image_id"]), truth) for run in found])
        for panel, title in zip(panels[-1], titles):
            rows += _csv_rows(record["image_id"], title, panel, categories)
    names = ("image_id", "panel", "class", "group", "score", "x", "y", "width", "height")
    figure = panels_figure(images, panels, titles, categories)
    return save(figure, path, dict(zip(names, zip(*rows))))


def panels_figure(
    images: Sequence[Image.Image],
    panels: Sequence[Sequence[Objects]],
    titles: Sequence[str],
    categories: Mapping[int, CategoryResult],
) -> Figure:
    """
    A row for each image.

    Args:
        images: RGB.
        panels: for each image what is drawn on it, one for each title.
        titles: of the columns.
        categories: by id.
    """
    size = (PANEL_INCHES * len(titles), 1.05 * PANEL_INCHES * len(images))
    figure, grid = new_figure(*size, nrows=len(images), ncols=len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, fontsize=10)
    for row, image, of_image in zip(grid, images, panels):
        for axes, panel in zip(row, of_image):
            draw_objects(axes, image, labelled(panel, categories), PANEL_INCHES)
    return figure


def most_different(
    records: Sequence[dict[str, Any]],
    category_ids: Sequence[int],
    first: Mapping[int, Objects],
    second: Mapping[int, Objects],
    count: int,
) -> list[dict[str, Any]]:
    """
    Images on which two runs name the most different numbers of objects right.

    Args:
        records: the set.
        category_ids: of each class.
        first, second: what each run has found in each image, the best first.
        count: how many images.
    """

    def difference(record: dict[str, Any]) -> int:
        truth = objects_of(record, category_ids)
        right = [
            num_right(shown(run.get(record["image_id"]), truth), truth) for run in (first, second)
        ]
        return abs(right[1] - right[0])

    annotated = [record for record in records if record["annotations"]]
    return sorted(annotated, key=difference, reverse=True)[:count]


def objects_of(record: dict[str, Any], category_ids: Sequence[int]) -> Objects:
    """What is annotated in an image; classes are numbered in the order of category ids."""
    annotations = record["annotations"]
    return Objects(
        np.array([a["bbox"] for a in annotations], dtype=np.float64),
        np.array([category_ids[a["category_id"]] for a in annotations]),
    )


def by_image(detections: Detections) -> dict[int, Objects]:
    """What is found in each image, the best first."""
    order = np.lexsort((-detections.scores, detections.image_ids))
    images, starts = np.unique(detections.image_ids[order], return_index=True)
    return {
        image: Objects(
            detections.boxes[rows].astype(np.float64),
            detections.category_ids[rows],
            detections.scores[rows],
        )
        for image, rows in zip(images.tolist(), np.split(order, starts[1:]))
    }


def shown(found: Objects | None, truth: Objects) -> Objects:
    """The best detections, one for each object that they see, as many as there are objects."""
    if found is None:
        return Objects(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
    is_same = pairwise_iou(found.boxes, found.boxes) >= SAME_OBJECT_IOU
    rows: list[int] = []
    for row in range(len(found.boxes)):
        if len(rows) == len(truth.boxes):
            break
        if not is_same[row, rows].any():
            rows.append(row)
    return Objects(found.boxes[rows], found.category_ids[rows], found.scores[rows])


def num_right(panel: Objects, truth: Objects) -> int:
    """How many objects are called by their name."""
    is_found = pairwise_iou(truth.boxes, panel.boxes) >= SAME_OBJECT_IOU
    is_named = truth.category_ids[:, None] == panel.category_ids[None]
    return int((is_found & is_named).any(axis=1).sum())


def _csv_rows(
    image_id: int, title: str, panel: Objects, categories: Mapping[int, CategoryResult]
) -> list[tuple]:
    scores = [""] * len(panel.boxes) if panel.scores is None else panel.scores.tolist()
    known = [categories[category_id] for category_id in panel.category_ids.tolist()]
    return [
        (image_id, title, category.name, category.group, score, *box)
        for category, score, box in zip(known, scores, panel.boxes.tolist())
    ]


def labelled(panel: Objects, categories: Mapping[int, CategoryResult]) -> list[LabelledObject]:
    """What is drawn of a panel."""
    scores = [None] * len(panel.boxes) if panel.scores is None else panel.scores.tolist()
    known = [categories[category_id] for category_id in panel.category_ids.tolist()]
    return [
        LabelledObject(box, category.name, category.group, score)
        for box, category, score in zip(panel.boxes, known, scores)
    ]


def main() -> None:
    parser = figure_parser("predictions", __doc__)
    add_runs(parser)
    parser.add_argument("--dataset", default="", help="by default the one of the evaluation")
    parser.add_argument("--images", type=int, default=3, help="how many to show")
    arguments = parser.parse_args()

    def work() -> Path:
        from detectron2.data import DatasetCatalog

        name = evaluated_dataset(arguments.runs[0], arguments.dataset)
        records = DatasetCatalog.get(name)
        labels = labels_of(arguments)
        return draw(arguments.runs, labels, records, arguments.output, arguments.images)

    draw_and_exit(work)


if __name__ == "__main__":
    main()
