"""Evaluators of sets that have one annotation file, LVIS and COCO."""

from collections.abc import Mapping

from detectron2.utils.file_io import PathManager

from ..errors import DatasetError
from .detections import Detections
from .evaluator import Evaluation, LongTailEvaluator, logger
from .ground_truth import GroundTruth
from .groups import CategoryGroups, groups_from_frequency, training_counts, training_groups
from .index_cache import load_ground_truth
from .measure import measure
from .options import EvaluationOptions


class JsonEvaluator(LongTailEvaluator):
    """What the evaluators of LVIS and COCO share."""

    file_format: str
    """"lvis" or "coco"."""
    thirds = False
    """Whether r, c, f may be thirds of the classes where LVIS would call all of them frequent."""

    def _load(self, with_masks: bool) -> tuple[GroundTruth | None, dict[int, int]]:
        ground_truth, category_ids = load_ground_truth(
            self._annotation_file(), self.file_format, with_masks=with_masks, write=self._is_main()
        )
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            mapping = {id: index for index, id in enumerate(category_ids)}
        self._partitions: tuple[CategoryGroups, ...] = ()
        if ground_truth is not None:
            self._partitions = self._groups(ground_truth, mapping)
            source = self._partitions[0].source
            logger.info("Groups r, c, f of %s come from %s", self._dataset_name, source)
        return ground_truth, dict(mapping)

    def _annotation_file(self) -> str:
        if self._metadata.get("json_file") is None:
            raise DatasetError(
                f"expected the metadata of {self._dataset_name!r} to name a json_file, found none: "
                "register the set with its annotations"
            )
        return PathManager.get_local_path(self._metadata.json_file)

    def _groups(
        self, ground_truth: GroundTruth, class_of_category: Mapping[int, int]
    ) -> tuple[CategoryGroups, ...]:
        if self._statistics is None:
            return (groups_from_frequency(ground_truth),)
        edges = tuple(self._options.instance_bins)
        if edges == EvaluationOptions().instance_bins:
            edges = self._metadata.get("instance_bin_edges", edges)
        return training_groups(
            ground_truth, self._statistics, class_of_category, edges, thirds=self.thirds
        )

    def _measure(self, detections: Detections) -> Evaluation:
        tasks = self._tasks or (("bbox",) if detections.masks is None else ("bbox", "segm"))
        if "segm" in tasks and self._options.boundary:
            tasks = (*tasks, "boundary")
        if "segm" in tasks and self._ground_truth.masks is None:
            self._ground_truth, _ = self._load(with_masks=True)
        found = measure(
            self._ground_truth, detections, tasks, self._protocol, self._partitions, self._options
        )
        train_counts = {}
        if self._statistics is not None:
            train_counts = training_counts(
                self._ground_truth, self._statistics, self._class_of_category
            )
        files = found.files(self._dataset_name, train_counts)
        return Evaluation(found.results, found.lines(), files)
