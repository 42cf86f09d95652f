"""What must be true of annotations before a training starts, and what to say where it is not."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import DatasetError
from ..files import replacing
from ..progress import track
from .annotation_schema import is_number

logger = logging.getLogger(__name__)

Record = dict[str, Any]

LISTED = 10
"""Records that a message names; all of more are listed in a file."""


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
            f"{error.colno}: {error.msg}): get it again, its download or export may have "
            "been cut short"
        ) from error
    except Exception as error:  # of loaders that are not ours, which check nothing
        raise DatasetError(
            f"{name!r}: {_source(name)} cannot be read as COCO or LVIS annotations "
            f"({type(error).__name__}: {error}); expected 'images', 'annotations' and 'categories' "
            "whose ids refer to each other"
        ) from error


def _source(name: str) -> str:
    return MetadataCatalog.get(name).get("json_file", "the data set")


def usable_records(
    records: Sequence[Record], class_names: Sequence[str], source: str
) -> list[Record]:
    """
    The records without what no training can use: boxes without area, or off their image.

    Mappers drop those from batches without a word; left in, they would be counted and sampled.
    Annotation files of repute have a few of them, so they are listed and not refused.

    Raises:
        DatasetError: an annotation is of no class, its box is none, or nothing is left.
    """
    num_classes = len(class_names)
    num_annotations, left_out, usable = 0, [], []
    for record in track(records, "checking annotations"):
        annotations = record.get("annotations", ())
        num_annotations += len(annotations)
        for index, annotation in enumerate(annotations):
            problem = _problem(annotation, num_classes)
            if problem:
                raise DatasetError(
                    f"{source}: image {_name(record)}, annotation {index}: {problem}"
                )
        record = without_invisible(record)
        left_out += [_name(record)] * (len(annotations) - len(record.get("annotations", ())))
        usable.append(record)
    if not num_annotations:
        raise DatasetError(
            f"{source}: no annotation in {len(records)} images, as in the file of a test set: name "
            "one with annotations"
        )
    if len(left_out) == num_annotations:
        raise DatasetError(
            f"{source}: none of {num_annotations} boxes has an area inside its image: write "
            "them as (x, y, width, height) in pixels"
        )
    if all(a.get("iscrowd", 0) for record in usable for a in record.get("annotations", ())):
        raise DatasetError(
            f"{source}: every box with an area is marked as a crowd (iscrowd 1), which nobody "
            "trains on: set iscrowd to 0 for single objects"
        )
    report_left_out(source, left_out, "have boxes without area inside their image", "of images")
    return usable


def report_left_out(
    source: str, names: Sequence[Any], reason: str, kind: str = "with the ids"
) -> None:
    """Log how many annotations a training goes without, and which; many are listed in a file."""
    if not names:
        return
    listed = ", ".join(map(str, names[:LISTED]))
    if len(names) > LISTED:
        listed += f", ... {_write_list(source, names, kind)}"
    logger.warning(
        "%s: %d annotations %s and are left out, %s %s: mend or remove them",
        *(source, len(names), reason, kind, listed),
    )


def _write_list(source: str, names: Sequence[Any], kind: str) -> str:
    """Write one name a line beside an annotation file, or where temporary files go; says where."""
    name, ending = os.path.basename(source), f"left_out_{kind.split()[-1]}.txt"
    beside = [os.path.join(os.path.dirname(source), name)] if os.path.isfile(source) else []
    # Files of all folders meet there, so the path is part of the name.
    path_digest = hashlib.sha256(os.path.abspath(source).encode()).hexdigest()[:8]
    for start in (*beside, os.path.join(tempfile.gettempdir(), f"{name}.{path_digest}")):
        place = f"{start}.{ending}"
        try:
            with replacing(place) as file:
                file.writelines(f"{left_out}\n" for left_out in names)
        except OSError:  # data sets often lie on read-only disks
            continue
        return f"(all in {place})"
    return "(the rest could not be written to a file)"


def check_masks(records: Sequence[Record], source: str) -> None:
    """Raise DatasetError unless every object that is trained on has a mask."""
    lacking = [
        _name(record)
        for record in records
        for annotation in record.get("annotations", ())
        if not annotation.get("segmentation") and not annotation.get("iscrowd", 0)
    ]
    if lacking:
        raise DatasetError(
            f"{source}: {len(lacking)} annotations have no segmentation, the first one in image "
            f"{lacking[0]}: set MODEL.MASK_ON False to train on boxes, or add the masks"
        )


def without_invisible(record: Record) -> Record:
    """The record, without annotations whose boxes have no area inside the image."""
    annotations = record.get("annotations", ())
    kept = [a for a in annotations if is_visible(a, record)]
    return record if len(kept) == len(annotations) else {**record, "annotations": kept}


def is_visible(annotation: Record, record: Record) -> bool:
    """
    Whether some of the box lies inside the image.

    True where it is none, or one of angles: Detectron2 and :func:`usable_records` see to those.
    """
    mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    if mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return True
    try:
        left, top, right, bottom = annotation["bbox"]
        if mode == BoxMode.XYWH_ABS:
            right, bottom = left + right, top + bottom
        # Said so that it is not true of no numbers.
        return not (
            right <= left
            or bottom <= top
            or right <= 0
            or bottom <= 0
            or left >= record.get("width", math.inf)
            or top >= record.get("height", math.inf)
        )
    except (KeyError, TypeError, ValueError):
        return True


def _problem(annotation: Record, num_classes: int) -> str | None:
    category = annotation.get("category_id")
    if not isinstance(category, int | np.integer) or not 0 <= category < num_classes:
        return (
            f"class {category!r}, expected 0..{num_classes - 1}: "
            "its category_id is not among the categories of the file"
        )
    box = annotation.get("bbox")
    if box is None or len(box) not in (4, 5) or not all(map(is_number, box)):
        return f"box {box!r}, expected 4 finite numbers: mend or remove the annotation"
    return None


def _name(record: Record) -> str:
    return repr(record.get("image_id", record.get("file_name")))
