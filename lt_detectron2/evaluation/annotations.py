"""From annotation files to columns: what is read, what is refused, and how that is said."""

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ..data.annotation_schema import (
    EXPORT,
    MAX_SIDE,
    MIN_POLYGON_NUMBERS,
    check_annotation_file,
    is_id,
    is_number,
    shown,
)
from ..errors import DatasetError, reason
from .masks import RunLengthMasks

logger = logging.getLogger(__name__)

_IDS_AT_ONCE = 1 << 16
"""They stay in the processor's cache."""
VERIFIED = np.uint8(1)
"""The image was checked for the category: detections of it count."""
NOT_EXHAUSTIVE = np.uint8(2)
"""Some objects of the category are not annotated: unmatched detections are not errors."""
POSITIVE = np.uint8(4)
"""The image has annotations of the category."""


def lvis_columns(dataset: Mapping, with_masks: bool) -> dict[str, Any]:
    """
    The fields of a `GroundTruth` by the rules of the official LVIS API.

    Annotations without area are dropped (and do not make their image positive), `ignore` is read
    and `iscrowd` is not.

    Raises:
        DatasetError: a key is missing, an id occurs twice, or a box is not four finite numbers.
    """
    images, categories, entries, columns = _tables(dataset, "an LVIS")
    flags = np.zeros((len(images), len(categories)), dtype=np.uint8)
    for key, flag in (
        ("neg_category_ids", VERIFIED),
        ("not_exhaustive_category_ids", NOT_EXHAUSTIVE),
    ):
        rows, listed = _federated_cells(images, key, columns["category_ids"])
        flags[rows, listed] |= flag
    areas = columns["areas"]
    known, has_area = columns.pop("known"), (areas > 0) & (areas < np.inf)
    kept = known & has_area
    without_area = columns["annotation_ids"][known & ~has_area].tolist()
    if without_area:
        logger.warning(
            "%d annotations have no area and, as by the official API, are not evaluated: %s",
            *(len(without_area), _listed(without_area)),
        )
    ignored = np.array([bool(entry.get("ignore", 0)) for entry in entries], dtype=bool)
    crowd = np.zeros(len(entries), dtype=bool)
    return _fields(columns, entries, flags, kept, ignored, crowd, with_masks)


def coco_columns(dataset: Mapping, with_masks: bool) -> dict[str, Any]:
    """
    The fields of a `GroundTruth` by the rules of pycocotools.

    Every image is checked for every category. `iscrowd` makes an annotation a region that may take
    any number of detections and is never missed; `ignore` is not read.

    Raises:
        DatasetError: as `lvis_columns`.
    """
    images, categories, entries, columns = _tables(dataset, "a COCO")
    flags = np.full((len(images), len(categories)), VERIFIED)
    kept = columns.pop("known")
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in entries], dtype=bool)
    return _fields(columns, entries, flags, kept, crowd, crowd, with_masks)


def _tables(
    dataset: Mapping, kind: str
) -> tuple[list[Mapping], list[Mapping], list[Mapping], dict[str, Any]]:
    """Images and categories by id, annotations in the order of the file, and their columns."""
    for key in ("images", "annotations", "categories"):
        if not isinstance(dataset.get(key), list):
            found = shown(dataset[key]) if key in dataset else f"only {shown(sorted(dataset))}"
            raise DatasetError(
                f"expected a list {key!r} in {kind} annotation file, found {found}: pass the "
                "annotations of a validation set"
            )
    image_ids = _unique_ids(dataset["images"], "image")
    images = [dataset["images"][row] for row in np.argsort(image_ids)]
    image_ids = np.sort(image_ids)
    category_ids = _unique_ids(dataset["categories"], "category")
    categories = [dataset["categories"][row] for row in np.argsort(category_ids)]
    category_ids = np.sort(category_ids)

    entries = dataset["annotations"]
    annotation_ids = _unique_ids(entries, "annotation")
    image, known_image = positions_in(image_ids, _integers(entries, "image_id", "annotation"))
    category, known_category = positions_in(
        category_ids, _integers(entries, "category_id", "annotation")
    )
    known = known_image & known_category
    if not known.all():
        strangers = annotation_ids[~known].tolist()
        logger.warning(
            "%d annotations belong to images or categories that the file does not list; "
            "they are not evaluated: %s",
            *(len(strangers), _listed(strangers)),
        )
    columns = {
        "image_ids": image_ids,
        "image_sizes": np.array(
            [(entry.get("height") or 0, entry.get("width") or 0) for entry in images],
            dtype=np.int32,
        ).reshape(-1, 2),
        "category_ids": category_ids,
        "category_names": tuple(str(entry.get("name", entry["id"])) for entry in categories),
        "category_frequency": tuple(str(entry.get("frequency", "")) for entry in categories),
        "annotation_ids": annotation_ids,
        "image": image,
        "category": category,
        "areas": _areas(entries),
        "boxes": _boxes(entries),
        "known": known,
    }
    return images, categories, entries, columns


def _fields(
    columns: dict[str, Any],
    entries: Sequence[Mapping],
    flags: np.ndarray,
    kept: np.ndarray,
    ignored: np.ndarray,
    crowd: np.ndarray,
    with_masks: bool,
) -> dict[str, Any]:
    """Sorts the annotations that are kept by cell."""
    rows = np.flatnonzero(kept)
    image, category = columns["image"], columns["category"]
    rows = rows[np.lexsort((category[rows], image[rows]))]
    flags[image[rows], category[rows]] |= VERIFIED | POSITIVE
    fields = dict(columns, cell_flags=flags, ignored=ignored, crowd=crowd)
    for name in ("annotation_ids", "image", "category", "areas", "boxes", "ignored", "crowd"):
        fields[name] = fields[name][rows]
    if with_masks:
        sizes = fields["image_sizes"][fields["image"]]
        fields["masks"] = _annotation_masks([entries[row] for row in rows], sizes)
    return fields


def read_annotations(path: str) -> dict:
    """
    Loads an annotation file.

    Raises:
        DatasetError: the file is absent or is not a JSON object; says which file and where.
    """
    try:
        with open(path, encoding="utf-8") as file:
            dataset = json.load(file)
    except FileNotFoundError:
        raise DatasetError(
            f"expected the annotations at {path}, found no such file: check the dataset's json_file"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"expected a JSON file, {path} cannot be read ({reason(error)}): it may be "
            "incomplete, get it again"
        ) from error
    if not isinstance(dataset, dict):
        raise DatasetError(
            f"expected a JSON object with images, annotations and categories in {path}, found a "
            f"{type(dataset).__name__}, and files of results have none: pass the annotations"
        )
    return dataset


def explain(error: Exception, dataset: Any, path: str) -> DatasetError:
    """What is wrong with annotations that could not be read: the first record that is unusual."""
    try:
        check_annotation_file(dataset, path)
    except DatasetError as found:
        return found
    return DatasetError(f"{path}: cannot be read as annotations ({reason(error)}): {EXPORT}")


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")


def _column(entries: Sequence[Mapping], key: str, kind: str = "annotation") -> list:
    try:
        return [entry[key] for entry in entries]
    except KeyError:
        position = next(n for n, entry in enumerate(entries) if key not in entry)
        raise DatasetError(
            f"expected every {kind} to have {key!r}, found only {sorted(entries[position])} in "
            f"{_name(entries, position, kind)}: complete the file"
        ) from None


def _name(entries: Sequence[Mapping], position: int, kind: str) -> str:
    """How a message calls an entry."""
    id = entries[position].get("id")
    return f"{kind} {id}" if is_id(id) else f"{kind} number {position}"


def _integers(entries: Sequence[Mapping], key: str, kind: str) -> np.ndarray:
    values = _column(entries, key, kind)
    try:
        column = np.asarray(values)
    except ValueError:  # lists of several lengths among them
        column = np.asarray(values, dtype=object)
    if len(values) and (column.dtype.kind != "i" or column.ndim > 1):  # "u": one is too large
        position = next((n for n, value in enumerate(values) if not is_id(value)), 0)
        raise DatasetError(
            f"expected each {kind} to have an integer as {key}, "
            f"{_name(entries, position, kind)} has {shown(values[position])}: number them"
        )
    return column.astype(np.int64)


def _unique_ids(entries: Sequence[Mapping], kind: str) -> np.ndarray:
    ids = _integers(entries, "id", kind)
    values, counts = np.unique(ids, return_counts=True)
    if len(values) != len(ids):
        raise DatasetError(
            f"{kind} id {values[counts > 1][0]} occurs {counts[counts > 1][0]} times: renumber "
            "them, one of them would be lost"
        )
    return ids


def _areas(entries: Sequence[Mapping]) -> np.ndarray:
    areas = np.asarray(_column(entries, "area"))
    if len(areas) and areas.dtype.kind not in "iuf":
        wrong = next((e for e in entries if not is_number(e["area"])), entries[0])
        raise DatasetError(
            f"expected area to be a number, annotation {wrong['id']} has {shown(wrong['area'])}: "
            "give the area of its mask, or of its box, in pixels"
        )
    return areas.astype(np.float64)


def positions_in(sorted_ids: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of `ids` in `sorted_ids`, and which of them are there at all."""
    if not len(sorted_ids):
        return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
    if sorted_ids[-1] - sorted_ids[0] >= 4 * len(ids):
        positions = np.searchsorted(sorted_ids, ids).clip(max=len(sorted_ids) - 1)
        return positions, sorted_ids[positions] == ids
    # A table is faster, and no larger. Its ends, where all other ids go, are unknown.
    first = sorted_ids[0] - 1
    table = np.full(sorted_ids[-1] - first + 2, -1)
    table[sorted_ids - first] = np.arange(len(sorted_ids))
    positions = np.empty(len(ids), dtype=np.int64)
    for start in range(0, len(ids), _IDS_AT_ONCE):
        part = slice(start, start + _IDS_AT_ONCE)
        places = np.subtract(ids[part], first, dtype=np.int64)
        np.take(table, places, mode="clip", out=positions[part])
    return positions, positions >= 0


def _federated_cells(
    images: Sequence[Mapping], key: str, category_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images and categories of one of the two lists that LVIS gives for each image."""
    for image in images:
        if key not in image:
            raise DatasetError(
                f"expected {key!r} for every image, image {image['id']} has only {sorted(image)}: "
                "the LVIS metric needs to know which categories were checked in an image; use a "
                "COCO evaluator for exhaustive annotations, or add the lists"
            )
    lengths = [len(image[key]) for image in images]
    listed = np.fromiter(
        chain.from_iterable(image[key] for image in images), dtype=np.int64, count=sum(lengths)
    )
    columns, known = positions_in(category_ids, listed)
    return np.repeat(np.arange(len(images)), lengths)[known], columns[known]


def _boxes(entries: Sequence[Mapping]) -> np.ndarray:
    boxes = _column(entries, "bbox")
    try:
        columns = np.array(boxes, dtype=np.float64).reshape(len(boxes), 4)
        valid = np.isfinite(columns).all()
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        wrong = [entry for entry, box in zip(entries, boxes) if not _is_box(box)]
        entry = (wrong or entries)[0]
        raise DatasetError(
            "expected bbox to be four finite numbers (x, y, width, height), annotation "
            f"{entry['id']} has {shown(entry['bbox'])}: correct or remove it"
        )
    return columns


def _is_box(box: object) -> bool:
    return isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box))


def _annotation_masks(entries: Sequence[Mapping], sizes: np.ndarray) -> RunLengthMasks:
    for entry, size in zip(entries, sizes):
        if not entry.get("segmentation") or not size.all():
            raise DatasetError(
                "the task 'segm' expects every annotation to have a segmentation and its image a "
                f"height and width, annotation {entry['id']} of image {entry['image_id']} lacks "
                "one: evaluate only the task 'bbox', or complete the file"
            )
        if isinstance(entry["segmentation"], list):
            _check_polygons(entry)
        elif not isinstance(entry["segmentation"], dict):
            raise DatasetError(
                f"annotation {entry['id']} has the segmentation {shown(entry['segmentation'])}, "
                "expected polygons or run lengths: mend or remove it"
            )
    masks = RunLengthMasks.from_segmentations([entry["segmentation"] for entry in entries], sizes)
    valid = masks.are_valid() & (masks.sizes == sizes).all(axis=1)
    if not valid.all():
        row = int(valid.argmin())
        height, width = sizes[row].tolist()
        raise DatasetError(
            f"expected run lengths of {height} x {width} pixels, annotation {entries[row]['id']} "
            "has others: mend or remove it"
        )
    return masks


def _check_polygons(entry: Mapping) -> None:
    # pycocotools takes the process down on others.
    try:
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in entry["segmentation"]]
        valid = all(p.ndim == 1 and len(p) >= 4 for p in polygons)
        # By the length of the first one it tells polygons from boxes.
        valid = valid and len(polygons[0]) >= MIN_POLYGON_NUMBERS
        valid = valid and all((np.abs(p) <= MAX_SIDE).all() for p in polygons)
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise DatasetError(
            "expected every polygon to be a list of finite numbers (x, y, x, y, ...) of at least 3 "
            f"points, annotation {entry['id']} has others: correct or remove it"
        )
