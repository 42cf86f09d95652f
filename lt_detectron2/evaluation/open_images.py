"""The Open Images challenge metric behind Detectron2's `DatasetEvaluator`."""

import csv
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from detectron2.data import DatasetCatalog

from ..errors import UserError
from .bootstrap import Interval, WeightedAP, intervals, weighted_numbers
from .challenge import (
    ancestor_table,
    challenge_ground_truth,
    expand_detections,
    match_challenge,
    quantile_groups,
)
from .detections import Detections
from .evaluation_files import OUTCOMES_FILE, PER_CATEGORY_FILE, RESULTS_FILE
from .evaluator import Evaluation, LongTailEvaluator
from .ground_truth import GroundTruth
from .groups import CategoryGroups, per_category
from .options import EvaluationOptions
from .outcomes import Outcomes
from .protocol import Protocol
from .report import (
    category_columns,
    csv_text,
    format_number,
    groups_summary,
    intervals_table,
    results_table,
    save_columns,
    without_nan,
)

if TYPE_CHECKING:
    from ..statistics import ClassStatistics

TASK = "bbox"


class LongTailOpenImagesEvaluator(LongTailEvaluator):
    """
    AP at IoU 0.5 by the rules of the Open Images Challenge 2019 (AP50), and AP1 to AP5 over fifths
    of the classes by training boxes.

    Args:
        dataset_name: a registered set. Its records have `is_group_of`, `pos_category_ids` and
            `neg_category_ids`, its metadata `thing_classes`, `class_ids` and `hierarchy`, ids of
            the parents of each class.
        tasks: ("bbox",); there are no others.
        distributed, output_dir, statistics, options: as in `LongTailLVISEvaluator`.

    Raises:
        UserError: the annotations cannot be used, or the folder cannot be written.
    """

    results_file = "challenge_results.csv"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        statistics: "ClassStatistics | None" = None,
        options: EvaluationOptions | None = None,
    ):
        if tasks is not None and tuple(tasks) != (TASK,):
            raise UserError(
                f"the Open Images challenge metric is for boxes, got tasks {tuple(tasks)}: set "
                "MODEL.MASK_ON False"
            )
        super().__init__(
            dataset_name,
            (TASK,),
            distributed,
            output_dir,
            protocol=Protocol(max_dets_per_image=None),
            statistics=statistics,
            options=options,
        )

    def _load(self, with_masks: bool) -> tuple[GroundTruth, dict[int, int]]:
        records = DatasetCatalog.get(self._dataset_name)
        names = self._metadata.thing_classes
        self._class_ids = self._metadata.get("class_ids") or names
        self._ancestors = ancestor_table(self._class_ids, self._metadata.get("hierarchy"))
        self._image_names = [str(record["image_id"]) for record in records]
        self._rows = {name: row for row, name in enumerate(self._image_names)}
        ground_truth = challenge_ground_truth(records, names, self._ancestors)
        classes = {index: index for index in range(len(names))}
        self._partitions: tuple[CategoryGroups, ...] = ()
        if self._statistics is not None:
            counts = np.asarray(self._statistics.instance_count)
            self._partitions = (quantile_groups(per_category(counts, ground_truth, classes)),)
        return ground_truth, classes

    def _image_key(self, image_id: Any) -> int:
        if str(image_id) not in self._rows:
            raise UserError(
                f"expected images of {self._dataset_name}, got image {image_id!r}: evaluate on the "
                "set that the data loader reads"
            )
        return self._rows[str(image_id)]

    def _columns(self, detections: Detections) -> dict[str, np.ndarray]:
        return detections.columns() | {"image_names": np.array(self._image_names)}

    def _read(self, path: str) -> Detections:
        if path.endswith(".json"):
            raise UserError(
                f"expected the detections.npz of an evaluation, got {path}: results in COCO's "
                "format have numbers for images, which Open Images has not"
            )
        detections = Detections.load(path)
        with np.load(path) as file:
            if file.get("image_names", np.array([])).tolist() != self._image_names:
                raise UserError(
                    f"expected detections on {self._dataset_name} in {path}, they were made on "
                    "other images: name the set that they were made for"
                )
        return detections

    def _measure(self, detections: Detections) -> Evaluation:
        if self._options.expand_predictions:
            detections = expand_detections(detections, self._ancestors)
        outcomes = match_challenge(
            self._ground_truth,
            detections,
            groups_count=self._options.groups_count,
            partitions=self._partitions,
        )
        fold, ones = WeightedAP(outcomes), np.ones(outcomes.num_images)
        ap = fold(ones)[0]
        numbers = {
            name: 100 * value
            for name, value in weighted_numbers(fold, ones).items()
            if name != "AP"  # the same as AP50
        }
        results = OrderedDict({TASK: numbers})
        spread = {}
        if self._options.bootstrap:
            spread = intervals(outcomes, self._options.bootstrap)
            del spread["AP"]
        annotated = ~np.isnan(ap)
        expanded = "copied to classes above" if self._options.expand_predictions else "as they are"
        lines = [
            results_table(results),
            f"{outcomes.protocol}; annotations expanded over the hierarchy, predictions {expanded}",
            f"categories with annotations: {np.count_nonzero(annotated)} of {len(ap)}",
            *(f"  {groups.describe(annotated)}" for groups in self._partitions),
            f"{len(outcomes.image):,} detections count of {len(detections):,}",
        ]
        if spread:
            lines.append(intervals_table(TASK, spread))
        table = self._table(outcomes, ap)
        content = self._summary(numbers, spread, annotated)
        files = {
            OUTCOMES_FILE.format(task=TASK): partial(save_columns, outcomes.columns()),
            PER_CATEGORY_FILE: lambda file: file.write(table),
            RESULTS_FILE: lambda file: file.write(content),
        }
        return Evaluation(results, lines, files)

    def _table(self, outcomes: Outcomes, ap: np.ndarray) -> str:
        train = None
        if self._statistics is not None:
            train = np.asarray(self._statistics.instance_count)
        columns = {"mid": self._class_ids}
        columns |= category_columns(self._ground_truth, self._partitions, None, train)
        found = np.add.reduceat(np.append(outcomes.right > 0, 0), outcomes.offsets[:-1])
        found = np.where(np.diff(outcomes.offsets) > 0, found, 0)
        objects = np.bincount(outcomes.annotation_category, minlength=len(ap))
        recall = np.where(objects > 0, found / np.maximum(objects, 1), np.nan)
        for name, values in (("AP50", ap), ("recall", recall)):
            columns[f"{TASK}_{name}"] = [format_number(100 * v, 4) for v in values.tolist()]
        return csv_text(columns)

    def _summary(
        self, numbers: dict[str, float], spread: dict[str, Interval], annotated: np.ndarray
    ) -> str:
        content = {
            "dataset": self._dataset_name,
            "annotations": self._ground_truth.fingerprint,
            "protocol": {
                "metric": "Open Images Challenge 2019",
                "groups_count": self._options.groups_count,
                "expand_predictions": self._options.expand_predictions,
            },
            "groups": [groups_summary(groups, annotated) for groups in self._partitions],
            "num_images": self._ground_truth.num_images,
            "num_annotations": int(self._ground_truth.instance_count.sum()),
            "num_categories": len(annotated),
            "num_categories_with_annotations": int(np.count_nonzero(annotated)),
            "results": {TASK: without_nan(numbers)},
        }
        if spread:
            content["bootstrap"] = {TASK: {n: _percent(asdict(i)) for n, i in spread.items()}}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def _write_results(self, detections: Detections, file: IO) -> None:
        """The CSV that the challenge's own tool reads; coordinates are shares of the image."""
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax"])
        heights, widths = self._ground_truth.image_sizes[detections.image_ids].T
        x, y, width, height = detections.boxes.astype(np.float64).T
        rows = zip(
            (self._image_names[row] for row in detections.image_ids.tolist()),
            (self._class_ids[c] for c in detections.category_ids.tolist()),
            detections.scores.tolist(),
            (x / widths).tolist(),
            ((x + width) / widths).tolist(),
            (y / heights).tolist(),
            ((y + height) / heights).tolist(),
        )
        writer.writerows(rows)


def _percent(fields: dict[str, float]) -> dict[str, float | None]:
    return without_nan({name: 100 * value for name, value in fields.items()})
