"""What must be true of annotations before a training starts, and what to say where it is not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import DatasetError
from ..progress import track


def load_records(name: str) -> list[dict[str, Any]]:
    """
    Records of a registered data set.

    Raises:
        DatasetError: the file is missing, is not JSON, lacks a field or lists an unknown category.
    """
    try:
        return DatasetCatalog.get(name)
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(
            f"{name!r}: file {error.filename!r} is missing; download it there, or set "
            "DETECTRON2_DATASETS to the folder that holds your data sets"
        ) from error
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{name!r}: {_source(name)} is not valid JSON (line {error.lineno}, column "
            f"{error.colno}: {error.msg}); was the download or export cut short?"
        ) from error
    except (KeyError, IndexError, TypeError, AssertionError) as error:
        raise DatasetError(
            f"{name!r}: {_source(name)} cannot be read as COCO or LVIS annotations "
            f"({type(error).__name__}: {error}); expected 'images', 'annotations' and 'categories' "
            "whose ids refer to each other"
        ) from error


def _source(name: str) -> str:
    return MetadataCatalog.get(name).get("json_file", "the data set")


def check_records(
    records: Sequence[dict[str, Any]], class_names: Sequence[str], source: str
) -> None:
    """
    Raise DatasetError for the first record that a training could not use.

    Checked are the class of every annotation and its box: finite, and wider and higher than 0.
    """
    num_classes = len(class_names)
    num_annotations = 0
    for record in track(records, "checking annotations"):
        for index, annotation in enumerate(record.get("annotations", ())):
            num_annotations += 1
            problem = _problem(annotation, num_classes)
            if problem:
                raise DatasetError(
                    f"{source}: image {record.get('image_id', record.get('file_name'))!r}, "
                    f"annotation {index}: {problem}"
                )
    if not num_annotations:
        raise DatasetError(
            f"{source}: no annotation in {len(records)} images; is it the file of a test set?"
        )


def _problem(annotation: dict[str, Any], num_classes: int) -> str | None:
    category = annotation.get("category_id")
    if not isinstance(category, int) or not 0 <= category < num_classes:
        return (
            f"class {category!r}, expected 0..{num_classes - 1}: "
            "its category_id is not among the categories of the file"
        )
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    if box is None or len(box) < 4 or not all(math.isfinite(value) for value in box):
        return f"box {box!r}, expected 4 finite numbers: mend or remove the annotation"
    width, height = box[2], box[3]
    if mode == BoxMode.XYXY_ABS:
        width, height = box[2] - box[0], box[3] - box[1]
    if mode in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) and not (width > 0 and height > 0):
        return f"box {list(box)!r} has no area, expected width and height > 0: mend or remove it"
    return None
