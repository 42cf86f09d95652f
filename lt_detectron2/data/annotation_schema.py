"""What every record of a COCO or LVIS annotation file has to look like, and how to mend it."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DatasetError
from . import run_lengths

MIN_POLYGON_NUMBERS = 6
MAX_SIDE = 100_000
"""
Pixels that an image is high or wide at most, and that a coordinate lies off at most. What is larger
is a mistake, and rasterising it would take all the memory there is.
"""
MAX_ID = 2**63 - 1
MASKS_AT_ONCE = 4096
EXPORT = "export the annotations in COCO or LVIS format"

# Of what is kept of it, since a value may be a whole file.
_BRIEF = reprlib.Repr()
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = 20
_BRIEF.maxstring = _BRIEF.maxother = 80

Record = Mapping[str, Any]


def check_annotation_file(dataset: Any, path: str) -> None:
    """
    Check the types, ids and references of a loaded file.

    Polygons of fewer than three points and boxes off their image are no error here: they are left
    out of a training, with a message.

    Args:
        dataset: what the JSON file holds.
        path: of the file, for messages.

    Raises:
        DatasetError: names the file, the record, what was expected and found, and a remedy.
    """
    check_tables(dataset, path)
    categories = _check_table(dataset["categories"], "category", path, category_problem)
    images = _check_table(dataset["images"], "image", path, image_problem)
    annotations = dataset.get("annotations", [])
    _check_table(
        annotations,
        "annotation",
        path,
        lambda entry: annotation_problem(entry, images, categories),
    )
    _check_compressed_masks(annotations, path)


def check_tables(dataset: Any, path: str) -> None:
    """
    Check that a loaded file has lists of images and of categories; annotations may be missing.

    Raises:
        DatasetError: it has not.
    """
    if not isinstance(dataset, dict):
        raise DatasetError(
            f"{path}: expected an object with images, annotations and categories, found a "
            f"{type(dataset).__name__}, and a file of results is no annotation file: {EXPORT}"
        )
    for key in ("images", "categories"):
        check_list(dataset, key, path)
        if not dataset[key]:
            raise DatasetError(f"{path}: the list {key!r} is empty: {EXPORT}")
    if "annotations" in dataset:
        check_list(dataset, "annotations", path)


def check_list(dataset: Mapping[str, Any], key: str, path: str) -> None:
    """Raise DatasetError unless a loaded file has this list."""
    if key not in dataset:
        raise DatasetError(
            f"{path}: there is no list {key!r}, only {shown(sorted(dataset))}: {EXPORT}"
        )
    if not isinstance(dataset[key], list):
        raise DatasetError(f"{path}: {key!r} is {shown(dataset[key])}, expected a list: {EXPORT}")


def field(entry: Record, key: str, kind: str, path: str) -> Any:
    """The value of a key. Raises DatasetError, with the record named, where there is none."""
    if key not in entry:
        raise DatasetError(
            f"{path}: {kind} {entry['id']} has no {key!r}, only {sorted(entry)}: complete the file"
        )
    return entry[key]


def check_unique(ids: Iterable[int], kind: str, path: str) -> None:
    """Raise DatasetError if an id occurs twice."""
    counts = Counter(ids)
    if counts and max(counts.values()) > 1:
        id, count = counts.most_common(1)[0]
        raise DatasetError(
            f"{path}: {kind} id {id!r} occurs {count} times: renumber them, they are told apart by "
            "nothing else"
        )


def has_too_few_points(polygon: Sequence[float]) -> bool:
    """Whether these are not the x and y of three points or more."""
    return len(polygon) % 2 == 1 or len(polygon) < MIN_POLYGON_NUMBERS


def is_id(value: Any) -> bool:
    """Whether this is a whole number of 64 bits."""
    return _is_integer(value) and abs(value) <= MAX_ID


def is_number(value: Any) -> bool:
    """Whether this is a finite number, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _check_table(entries: Sequence[Any], kind: str, path: str, problem: Any) -> dict[int, Record]:
    """The records by id, each checked."""
    by_id: dict[int, Record] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError(
                f"{path}: expected {kind} number {position} to be an object, found "
                f"{shown(entry)}: remove it or export the file again"
            )
        if "id" not in entry:
            raise DatasetError(
                f"{path}: {kind} number {position} has no 'id', only {sorted(entry)}: complete the "
                "file"
            )
        id = entry["id"]
        if not is_id(id):
            raise DatasetError(
                f"{path}: {kind} number {position} has the id {shown(id)}, expected an integer: "
                "number them"
            )
        found = problem(entry)
        if found:
            raise DatasetError(f"{path}: {kind} {id} {found}")
        by_id[id] = entry
    if len(by_id) < len(entries):
        check_unique((entry["id"] for entry in entries), kind, path)
    return by_id


def category_problem(category: Record) -> str | None:
    """What is wrong with a category, or None."""
    if not isinstance(category.get("name", ""), str):
        return f"has the name {shown(category['name'])}, expected a text: name it"
    return None


def image_problem(image: Record) -> str | None:
    """What is wrong with an image, or None."""
    for key in ("height", "width"):
        if key not in image:
            return f"has no {key!r}, only {sorted(image)}: complete the file"
        side = image[key]
        if not is_number(side) or not 0 < side <= MAX_SIDE or side != round(side):
            return (
                f"has {key} {shown(side)}, expected 1 to {MAX_SIDE:,} pixels: write the size of "
                "its file"
            )
    for key in ("file_name", "coco_url"):
        name = image.get(key, "?")
        if not isinstance(name, str) or not name or "\0" in name:
            return f"has {key} {shown(name)}, expected the name of a file: complete it"
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        ids = image.get(key, [])
        if not isinstance(ids, list) or not all(map(_is_integer, ids)):
            return f"has {key} {shown(ids)}, expected a list of category ids: correct it"
    return None


def annotation_problem(
    entry: Record, images: Mapping[int, Record], categories: Mapping[int, Record]
) -> str | None:
    """What is wrong with an annotation of these images and categories, by id, or None."""
    for kind, known in (("image", images), ("category", categories)):
        key = f"{kind}_id"
        if key not in entry:
            return f"has no {key!r}, only {sorted(entry)}: complete the file"
        id = entry[key]
        if isinstance(id, str) and id in known:
            return f"belongs to {kind} {shown(id)}, expected a whole number: number the {kind} ids"
        if not _is_integer(id) or id not in known:
            return (
                f"belongs to {kind} {shown(id)}, which the file does not list: add the {kind} or "
                "remove the annotation"
            )
    if "bbox" not in entry:
        return f"has no 'bbox', only {sorted(entry)}: complete the file"
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_coordinate, box)):
        return (
            f"has the box {shown(box)}, expected 4 finite numbers (x, y, width, height) in "
            "pixels: mend or remove it"
        )
    for key in ("iscrowd", "ignore"):
        if entry.get(key, 0) not in (0, 1):
            return f"has {key} {shown(entry[key])}, expected 0 or 1: correct it"
    if "area" in entry and not is_number(entry["area"]):
        return (
            f"has the area {shown(entry['area'])}, expected a number: give that of its mask, or "
            "of its box, in pixels"
        )
    image = images[entry["image_id"]]
    if image_problem(image):
        return None  # said of the image
    return _segmentation_problem(entry.get("segmentation"), image["height"], image["width"])


def _segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, dict):
        return _run_length_problem(segmentation, height, width)
    if not isinstance(segmentation, list):
        return (
            f"has the segmentation {shown(segmentation)}, expected polygons or run lengths: mend "
            "or remove it"
        )
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return (
                f"has the polygon {shown(polygon)}, expected a list of lists of x and y: put "
                "brackets around it, or mend or remove it"
            )
        if not _are_coordinates(polygon):
            return (
                f"has the polygon {shown(polygon)}, expected finite numbers within "
                f"{MAX_SIDE:,} pixels: mend or remove it"
            )
    return None


def _run_length_problem(mask: Record, height: int, width: int) -> str | None:
    size, counts = mask.get("size"), mask.get("counts")
    if size != [height, width] or not all(map(_is_integer, size)):
        return (
            f"has run lengths of the size {shown(size)}, its image is {height} x {width}: mend or "
            "remove it"
        )
    if isinstance(counts, list):
        if not all(_is_integer(count) and 0 <= count <= height * width for count in counts):
            return f"has the run lengths {shown(counts)}, expected integers: mend or remove it"
        if sum(counts) != height * width:  # pycocotools would not notice
            return (
                f"has run lengths of {sum(counts)} pixels, expected {height} x {width}: mend or "
                "remove it"
            )
    elif not isinstance(counts, str) or not counts.isascii():
        return f"has the run lengths {shown(counts)}, expected COCO's code: mend or remove it"
    return None


def _check_compressed_masks(annotations: Sequence[Record], path: str) -> None:
    compressed = [
        entry
        for entry in annotations
        if isinstance(entry.get("segmentation"), dict)
        and isinstance(entry["segmentation"]["counts"], str)
    ]
    for first in range(0, len(compressed), MASKS_AT_ONCE):
        part = compressed[first : first + MASKS_AT_ONCE]
        codes = [entry["segmentation"]["counts"].encode() for entry in part]
        pixels = [np.prod(entry["segmentation"]["size"]) for entry in part]
        valid = run_lengths.are_valid(
            np.frombuffer(b"".join(codes), dtype=np.uint8),
            np.array([len(code) for code in codes], dtype=np.int64),
            np.array(pixels, dtype=np.int64),
        )
        if not valid.all():
            entry = part[int(valid.argmin())]
            height, width = entry["segmentation"]["size"]
            raise DatasetError(
                f"{path}: annotation {entry['id']} has run lengths that are not those of "
                f"{height} x {width} pixels: mend or remove it"
            )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_coordinate(value: Any) -> bool:
    return is_number(value) and abs(value) <= MAX_SIDE


def _are_coordinates(values: Sequence[Any]) -> bool:
    try:
        numbers = np.array(values)
    except (ValueError, OverflowError):
        return False
    if not len(values):
        return True
    return numbers.ndim == 1 and numbers.dtype.kind in "iuf" and bool(_within(numbers))


def _within(numbers: np.ndarray) -> bool:
    return (np.abs(numbers) <= MAX_SIDE).all()  # False where one is not a number


def shown(value: Any) -> str:
    """The value in a message, cut where it is long."""
    text = _BRIEF.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
