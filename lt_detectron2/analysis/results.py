"""What figures read from the output folder of an evaluated run."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evaluation import Detections, GroundTruth, load_ground_truth
from ..evaluation.evaluation_files import DETECTIONS_FILE, PER_CATEGORY_FILE, RESULTS_FILE
from ..evaluation.report import ABSENT
from ..statistics import GROUP_NAMES

GROUP_LETTERS = {name[0]: name for name in GROUP_NAMES}


@dataclass(frozen=True)
class CategoryResult:
    """
    One row of per_category.csv.

    Args:
        name, group: of the class; the group is "rare", "common", "frequent" or "".
        train_images: -1 where nobody knows.
        ap: in percent, nan for a class without annotations and where it was not measured.
    """

    name: str
    group: str
    train_images: int
    ap: float


def evaluation_folder(run: str | Path) -> Path:
    """Where the results of a run lie; a folder that holds results itself is its own."""
    return Path(run) if (Path(run) / RESULTS_FILE).is_file() else Path(run) / "inference"


def read_categories(run: str | Path, task: str = "bbox") -> dict[int, CategoryResult]:
    """
    What is known of each class by category id, from the output folder of a run.

    Args:
        run: its output folder.
        task: whose AP; a run that was not evaluated for it has names, groups and counts still.

    Raises:
        UserError: the run has not been evaluated.
    """
    path = evaluation_folder(run) / PER_CATEGORY_FILE
    if not path.is_file():
        raise UserError(
            f"expected the results of an evaluation at {path}, found no such file: give the output "
            "folder of a run that train_net.py has evaluated"
        )
    return {
        int(row["category_id"]): CategoryResult(
            row["name"],
            GROUP_LETTERS.get(row["group"], ""),
            int(_known(row["train_images"], -1)),
            float(_known(row.get(f"{task}_AP", ABSENT), np.nan)),
        )
        for row in read_rows(path)
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_detections(run: str | Path) -> Detections:
    """What a run found, as its evaluation has saved it."""
    return Detections.load(str(evaluation_folder(run) / DETECTIONS_FILE))


def evaluated_dataset(run: str | Path, dataset: str = "") -> str:
    """
    The registered data set that a run was evaluated on.

    Args:
        run: its output folder.
        dataset: another name than the one that the results have.

    Raises:
        UserError: the run has not been evaluated, or no such set is registered.
    """
    from detectron2.data import DatasetCatalog

    from ..data import datasets  # noqa: F401  registers them

    if not dataset:
        path = evaluation_folder(run) / RESULTS_FILE
        if not path.is_file():
            raise UserError(f"{run} has no results of an evaluation: expected {path}")
        dataset = json.loads(path.read_text(encoding="utf-8"))["dataset"]
    if dataset not in DatasetCatalog.list():
        raise UserError(f"no data set is registered as {dataset!r}: name the one of the evaluation")
    return dataset


def read_ground_truth(run: str | Path, dataset: str = "") -> GroundTruth:
    """
    The annotations that a run was evaluated on; arguments as of :func:`evaluated_dataset`.

    Raises:
        UserError: as there, or the set has no annotations in the format of LVIS or COCO.
    """
    from detectron2.data import MetadataCatalog

    dataset = evaluated_dataset(run, dataset)
    metadata = MetadataCatalog.get(dataset)
    kind, file = metadata.get("evaluator_type"), metadata.get("json_file")
    ground_truth = None
    if kind in ("lvis", "coco") and file:
        ground_truth, _ = load_ground_truth(file, kind, write=False)
    if ground_truth is None:
        raise UserError(f"{dataset!r} has no annotations in the format of LVIS or COCO")
    return ground_truth


def _known(text: str, otherwise: float) -> str | float:
    return otherwise if text == ABSENT else text
