"""What all evaluators share: from instances to columns, between processes, and into files."""

import json
import logging
import os
from abc import abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from ..errors import UserError, about
from ..files import replacing
from .annotations import VERIFIED, positions_in
from .collected import CollectedDetections
from .detections import Detections, Kept
from .evaluation_files import (
    CURVES_FILE,
    DETECTIONS_FILE,
    OUTCOMES_FILE,
    PER_CATEGORY_FILE,
    RESULTS_FILE,
    make_writable,
    timed,
)
from .ground_truth import GroundTruth
from .groups import check_class_names
from .inference import ROI_MASKS
from .masks import RunLengthMasks
from .options import EvaluationOptions
from .pasting import encode_roi_masks
from .prefilter import CategoryCap, Prefilter
from .protocol import Protocol
from .selection import best_of_each

if TYPE_CHECKING:
    from ..statistics import ClassStatistics

logger = logging.getLogger(__name__)

_MAX_IMAGES_WAITING = 64


@dataclass
class Evaluation:
    """
    What came out of one evaluation.

    Args:
        results: metrics in percent by task, nan where there is nothing to measure.
        lines: the tables and remarks that people read.
        files: writers by file name, (file, is binary); `results.json` is written last.
    """

    results: OrderedDict[str, dict[str, float]]
    lines: list[str]
    files: dict[str, Callable[[IO], None]] = field(default_factory=dict)


class LongTailEvaluator(DatasetEvaluator):
    """
    Detections are kept as columns, filtered before they are gathered, and measured on the main
    process; every process receives the results.

    Args:
        dataset_name: a registered set. Classes are translated to categories by the
            `thing_dataset_id_to_contiguous_id` of its metadata; without one, class i is the i-th
            category id.
        tasks: "bbox", "segm" or both; by default what the predictions hold.
        distributed: gather from all processes; otherwise evaluate what this process has seen.
        output_dir: where to write files, and to set detections aside while the model runs; without
            one they stay in memory.
        protocol: caps and thresholds.
        statistics: counts of the training set, which say what is rare, common and frequent.
        options: what to compute beside the standard metrics.

    Raises:
        UserError: the annotations cannot be used, the folder cannot be written, or the model was
            trained on other classes.
    """

    results_file = "instances_results.json"
    """Name of the file for evaluation servers."""

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None,
        distributed: bool,
        output_dir: str | None,
        *,
        protocol: Protocol,
        statistics: "ClassStatistics | None",
        options: EvaluationOptions | None,
    ):
        if tasks is not None and (not tasks or not set(tasks) <= {"bbox", "segm"}):
            raise ValueError(f"expected tasks among ('bbox', 'segm'), got {tuple(tasks)}")
        self._dataset_name = dataset_name
        self._tasks = None if tasks is None else tuple(tasks)
        self._distributed = distributed
        self._output_dir = output_dir
        self._protocol = protocol
        self._statistics = statistics
        self._options = options or EvaluationOptions()
        self._metadata = MetadataCatalog.get(dataset_name)
        if output_dir and self._is_main():
            make_writable(output_dir)
        # Only the main process matches masks, and rasterising polygons takes a while.
        with timed(f"Loaded the annotations of {dataset_name}"):
            self._ground_truth, self._class_of_category = self._load(
                with_masks="segm" in (tasks or ()) and self._is_main()
            )
        trained = None if statistics is None else getattr(statistics, "class_names", None)
        check_class_names(trained, self._metadata.get("thing_classes"))
        keep_all = self._options.keep_unverified or self._options.expand_predictions
        self._prefilter = Prefilter(
            protocol, self._ground_truth, self._class_of_category, keep_unverified=keep_all
        )
        self.category_cap: CategoryCap | None = None
        """With a cap per category, what a detection must score to be among the best so far."""
        self._pool: ThreadPoolExecutor | None = None
        self.reset()

    # ---- while the model runs

    def reset(self) -> None:
        """Forgets all detections. The first new ones remove results of others from the folder."""
        self._image_ids: list[Any] = []
        # Images whose masks are being encoded: detections, which of them were verified, and the
        # masks of these.
        self._waiting: deque[tuple[Detections, np.ndarray, Callable[[], RunLengthMasks] | None]] = (
            deque()
        )
        self._collected = self._new_collection()
        if self._protocol.max_dets_per_category is not None:
            num_classes = max(self._class_of_category.values(), default=-1) + 1
            self.category_cap = CategoryCap(self._protocol.max_dets_per_category, num_classes)

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        if not self._image_ids and self._is_main():
            self._discard_outdated()
        for image, output in zip(inputs, outputs):
            if "instances" not in output:
                raise UserError(
                    f"expected a model that returns 'instances', got {sorted(output)}: proposals "
                    "alone have no AP"
                )
            self._image_ids.append(image["image_id"])
            self._add(self._image_key(image["image_id"]), output["instances"])

    def _add(self, image_id: int, instances: Instances) -> None:
        scores = instances.scores.detach().float().cpu().numpy()
        classes = instances.pred_classes.detach().cpu().numpy().astype(np.int32)
        rows, verified, kept = self._prefilter(image_id, classes, scores)
        if self.category_cap:
            good = self.category_cap.may_count(classes[rows], scores[rows])
            rows, verified = rows[good], verified[good]
            kept = kept + Kept(dropped={"over the category's cap": int(np.count_nonzero(~good))})
        boxes = instances.pred_boxes.tensor.detach().float()
        selected = boxes.cpu().numpy()[rows]
        part = Detections(
            image_ids=np.full(len(rows), image_id, dtype=np.int64),
            category_ids=classes[rows],
            scores=scores[rows],
            boxes=np.concatenate([selected[:, :2], selected[:, 2:] - selected[:, :2]], axis=1),
            kept=kept,
        )
        masks = None
        if self._tasks is None or "segm" in self._tasks:
            masks = self._encode(instances, boxes, rows[verified])
        self._waiting.append((part, verified, masks))
        self._collect(but=_MAX_IMAGES_WAITING if self._options.workers else 0)
        if self.category_cap and self.category_cap.is_due(len(self._collected)):
            self._apply_category_cap()

    def _encode(
        self, instances: Instances, boxes: torch.Tensor, rows: np.ndarray
    ) -> Callable[[], RunLengthMasks] | None:
        """The masks of some detections, now or later; the others only take a place."""
        if instances.has(ROI_MASKS):
            small = instances.get(ROI_MASKS).tensor[rows].detach().float().cpu()
            arguments = encode_roi_masks, small, boxes[rows].cpu(), *instances.image_size
        elif instances.has("pred_masks"):
            masks = instances.pred_masks[rows].detach().bool().cpu().numpy()
            arguments = RunLengthMasks.encode, masks
        else:
            return None
        if not self._options.workers:
            return partial(*arguments)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._options.workers)
        return self._pool.submit(*arguments).result

    def _collect(self, but: int = 0) -> None:
        """Sets detections aside in the order of their images, but for those of the latest few."""
        while len(self._waiting) > but:
            part, verified, encoded = self._waiting.popleft()
            if encoded is not None:
                masks = encoded()
                if not verified.all():
                    masks = masks.spread(np.flatnonzero(verified), len(verified))
                part = replace(part, masks=masks)
            self._collected.append(part)

    def _apply_category_cap(self) -> None:
        best = self.category_cap.compact(self._collected.read())
        self._collected = self._new_collection()
        self._collected.append(best)

    def _new_collection(self) -> CollectedDetections:
        return CollectedDetections(self._output_dir, self._prefilter.kept)

    # ---- afterwards

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """
        Returns:
            metrics in percent by task, without those that have nothing to measure (no annotation in
            a group, say): nan would spoil JSON files and curves. On every process.
        """
        self._collect()
        if self.category_cap:
            self._apply_category_cap()
        gathered = [(self._image_ids, self._collected.read().columns())]
        self._collected = self._new_collection()
        if self._distributed:
            gathered = comm.gather(gathered[0], dst=0)
        return self._on_main(lambda: self._evaluate_gathered(gathered))

    def evaluate_file(self, path: str) -> OrderedDict[str, dict[str, float]]:
        """
        Evaluates saved detections instead of those of a model.

        Args:
            path: `detections.npz` of an evaluation, or a JSON file of results with category ids.

        Raises:
            UserError: no such file, or it lacks detections that the metric needs.
        """

        def evaluate() -> OrderedDict[str, dict[str, float]]:
            with timed(f"Read {path}"):
                detections = self._read(path)
            self._discard_outdated(but=path)
            with about(path):
                return self._evaluate_detections(detections)

        return self._on_main(evaluate)

    def _on_main(self, function: Callable[[], Any]) -> Any:
        """The result of a function of the main process, or the error that it raised."""
        outcome: dict[str, Any] = {}
        error = None
        if self._is_main():
            try:
                outcome = {"results": function()}
            except Exception as raised:  # whatever it is, the other processes must not wait for it
                error = raised
                known = isinstance(raised, UserError)
                outcome = {"error": raised if known else RuntimeError(repr(raised))}
        if self._distributed:
            outcome = comm.all_gather(outcome)[0]
        if error is not None:
            raise error
        if "error" in outcome:
            raise outcome["error"]
        return outcome["results"]

    def _evaluate_gathered(
        self, gathered: list[tuple[list[Any], dict[str, np.ndarray]]]
    ) -> OrderedDict[str, dict[str, float]]:
        image_ids = [id for ids, _ in gathered for id in ids]
        detections = Detections.concatenate([Detections.from_columns(c) for _, c in gathered])
        gathered.clear()
        # Files and ties must not depend on which process saw which image.
        image = detections.image_ids
        if (image[1:] < image[:-1]).any():
            detections = detections.take(np.argsort(image, kind="stable"))
        detections = self._final_cap(self._with_category_ids(detections))
        self._write_detections(detections)
        if self._ground_truth is not None:
            self._check_images(np.array([self._image_key(id) for id in image_ids], np.int64))
        return self._evaluate_detections(detections)

    def _evaluate_detections(self, detections: Detections) -> OrderedDict[str, dict[str, float]]:
        if self._options.results_file or self._ground_truth is None:
            self._write_results_file(detections)
        if self._ground_truth is None:
            logger.info("%s has no annotations: nothing to evaluate", self._dataset_name)
            return OrderedDict()
        detections.kept.check(self._protocol, self._ground_truth.fingerprint)
        logger.info(
            "Evaluation of %s: %s images, %s annotations, %s detections",
            self._dataset_name,
            f"{self._ground_truth.num_images:,}",
            f"{len(self._ground_truth.boxes):,}",
            f"{len(detections):,}",
        )
        evaluation = self._measure(detections)
        logger.info("Results in percent:\n%s", "\n".join(evaluation.lines))
        if self._output_dir:
            # results.json last, since it tells that the evaluation is complete.
            for name in sorted(evaluation.files, key=lambda name: name == RESULTS_FILE):
                mode = "wb" if name.endswith(".npz") else "w"
                with replacing(os.path.join(self._output_dir, name), mode) as file:
                    evaluation.files[name](file)
        return OrderedDict(
            (task, {name: value for name, value in numbers.items() if not np.isnan(value)})
            for task, numbers in evaluation.results.items()
        )

    @abstractmethod
    def _load(self, with_masks: bool) -> tuple[GroundTruth | None, dict[int, int]]:
        """The annotations, None for a test set, and the class of each category id."""

    @abstractmethod
    def _measure(self, detections: Detections) -> Evaluation:
        """The metric."""

    def _image_key(self, image_id: Any) -> int:
        """The number under which columns hold an image."""
        return int(image_id)

    def _is_main(self) -> bool:
        return comm.is_main_process() or not self._distributed

    def _with_category_ids(self, detections: Detections) -> Detections:
        """Replaces classes by category ids."""
        classes = detections.category_ids
        category_of_class = {index: id for id, index in self._class_of_category.items()}
        unknown = np.setdiff1d(classes, list(category_of_class))
        if len(unknown):
            raise UserError(
                f"expected classes 0 to {max(category_of_class)} as in {self._dataset_name}, the "
                f"model predicts class {unknown[0]}: it was trained on other classes"
            )
        table = np.full(max(category_of_class, default=-1) + 1, -1, dtype=np.int64)
        table[list(category_of_class)] = list(category_of_class.values())
        return replace(detections, category_ids=table[classes])

    def _final_cap(self, detections: Detections) -> Detections:
        """The cap per category over all processes; then nobody needs unverified detections."""
        cap = self._protocol.max_dets_per_category
        if cap is None or not np.isfinite(detections.scores).all():  # an error, which comes next
            return detections
        kept = best_of_each(detections.category_ids, detections.scores, cap)
        dropped = {"over the category's cap": int(np.count_nonzero(~kept))}
        if detections.kept.verified_in:
            index = self._ground_truth
            image, known_image = positions_in(index.image_ids, detections.image_ids)
            category, known = positions_in(index.category_ids, detections.category_ids)
            unverified = (index.cell_flags[image, category] & VERIFIED) == 0
            unverified &= known_image & known
            dropped["of unverified categories"] = int(np.count_nonzero(kept & unverified))
            kept &= ~unverified
        return detections.take(np.flatnonzero(kept)).with_dropped(dropped)

    def _check_images(self, image_ids: np.ndarray) -> None:
        ids, counts = np.unique(image_ids, return_counts=True)
        if (counts > 1).any():
            raise UserError(
                f"expected every image once, image {ids[counts > 1][0]} was evaluated "
                f"{counts[counts > 1][0]} times: use a sampler that does not pad, such as "
                "Detectron2's InferenceSampler"
            )
        missing = np.setdiff1d(self._ground_truth.image_ids, ids)
        if len(missing):
            logger.warning(
                "%d of %d images were not given to the model (the first is %d); their objects "
                "count as missed",
                len(missing),
                self._ground_truth.num_images,
                missing[0],
            )

    def _discard_outdated(self, but: str = "") -> None:
        """Removes what earlier evaluations wrote, which nobody shall take for the new."""
        if not self._output_dir or not self._is_main():
            return
        folder = Path(self._output_dir)
        names = (DETECTIONS_FILE, RESULTS_FILE, PER_CATEGORY_FILE, CURVES_FILE, self.results_file)
        for path in (*(folder / n for n in names), *folder.glob(OUTCOMES_FILE.format(task="*"))):
            if path.resolve() != Path(but).resolve():
                path.unlink(missing_ok=True)

    def _write_detections(self, detections: Detections) -> None:
        if not self._output_dir:
            return
        path = os.path.join(self._output_dir, DETECTIONS_FILE)
        with (
            timed(f"Wrote {len(detections):,} detections to {path}"),
            replacing(path, "wb") as file,
        ):
            np.savez(file, **self._columns(detections))

    def _columns(self, detections: Detections) -> dict[str, np.ndarray]:
        return detections.columns()

    def _read(self, path: str) -> Detections:
        return Detections.load(path)

    def _write_results_file(self, detections: Detections) -> None:
        if not self._output_dir:
            return
        path = os.path.join(self._output_dir, self.results_file)
        with timed(f"Wrote {path}"), replacing(path) as file:
            self._write_results(detections, file)

    def _write_results(self, detections: Detections, file: IO) -> None:
        separator = "["
        for entry in detections.results():
            file.write(separator + json.dumps(entry))
            separator = ",\n"
        file.write("]" if separator != "[" else "[]")
