"""Anybody's data set in COCO or LVIS format, registered in one line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ...errors import DatasetError
from ..validate import report_left_out
from .annotation_json import AnnotationSummary, load_lvis_records, summarize_annotation_json
from .metadata import DerivedMetadata


def register_dataset(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """
    Registers a data set under a name for DATASETS.TRAIN and DATASETS.TEST.

    Nothing is read before somebody asks for the records or the classes. The format is found out
    from the file then: LVIS where images have `neg_category_ids` or
    `not_exhaustive_category_ids`, and COCO otherwise. It decides which evaluator is used. Category
    ids may be any numbers; classes are numbered 0..K-1 in their order.

    Args:
        name: of the data set. The same registration may be repeated.
        json_file: annotations.
        image_root: the folder that the file names of images are relative to.

    Raises:
        DatasetError: the name stands for other files already.
    """
    json_file, image_root = (str(_absolute(path)) for path in (json_file, image_root))
    if name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if (metadata.get("json_file"), metadata.get("image_root")) == (json_file, image_root):
            return
        raise DatasetError(
            f"data set {name!r} is registered already, with annotations "
            f"{metadata.get('json_file', 'of its own')!r}: choose another name"
        )
    DatasetCatalog.register(name, lambda: load_dataset(name, json_file, image_root))
    MetadataCatalog[name] = CustomMetadata(name=name, json_file=json_file, image_root=image_root)


def register_annotations(json_file: str | Path, image_root: str | Path = "") -> str:
    """
    Registers an annotation file under a name made from its own, and returns that name.

    Args:
        json_file: annotations in COCO or LVIS format.
        image_root: the folder that file names of images are relative to; that of the file if empty.
    """
    json_file = _absolute(json_file)
    image_root = _absolute(image_root) if str(image_root) else json_file.parent
    name = json_file.stem
    try:
        register_dataset(name, json_file, image_root)
    except DatasetError:  # another file of that name, as in train/labels.json and val/labels.json
        place = hashlib.sha256(f"{json_file}\n{image_root}".encode())
        name = f"{name}_{place.hexdigest()[:8]}"
        register_dataset(name, json_file, image_root)
    return name


def _absolute(path: str | Path) -> Path:
    """What the path means now: records are read later, perhaps from another working folder."""
    return Path(os.path.abspath(Path(path).expanduser()))


class CustomMetadata(DerivedMetadata):
    """
    Metadata that are read from the annotation file.

    Attributes:
        json_file, image_root: as registered.
        evaluator_type: "lvis" or "coco".
        thing_classes: K class names.
        thing_dataset_id_to_contiguous_id: classes 0..K-1 by category id.
    """

    @property
    def evaluator_type(self) -> str:
        return self._summary().format

    @property
    def thing_classes(self) -> list[str]:
        return list(self._summary().class_names)

    @property
    def thing_dataset_id_to_contiguous_id(self) -> dict[int, int]:
        return self._summary().class_of_category

    def _summary(self) -> AnnotationSummary:
        return summarize_annotation_json(self.json_file)


def load_dataset(name: str, json_file: str, image_root: str) -> list[dict[str, Any]]:
    """
    Records of a COCO or LVIS file in Detectron2's format; those of COCO by Detectron2's loader.

    Raises:
        DatasetError: the file is missing, or is neither COCO nor LVIS.
    """
    summary = summarize_annotation_json(json_file)
    if summary.format == "lvis":
        records = load_lvis_records(json_file, image_root)
    else:
        report_left_out(json_file, summary.without_polygon, "have no polygon of 3 points")
        records = load_coco_json(json_file, image_root, name)
    _make_coordinates_floats(records)
    return records


def _make_coordinates_floats(records: Sequence[dict[str, Any]]) -> None:
    """
    See to it that boxes and polygons become arrays of floats.

    Detectron2 resizes arrays of ints in place, and so cuts off what is behind the point: of a box
    of 3 pixels in half the size, a third. One float among the numbers makes an array of floats.
    """
    for record in records:
        for annotation in record.get("annotations", ()):
            polygons = annotation.get("segmentation")
            lists = polygons if isinstance(polygons, list) else []
            for numbers in (annotation.get("bbox"), *lists):
                if isinstance(numbers, list) and numbers and isinstance(numbers[0], int):
                    numbers[0] = float(numbers[0])
