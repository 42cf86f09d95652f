"""
The files of Open Images as columns: CSV of boxes, labels and sizes, the classes, their hierarchy.

Classes are known by their MID (`/m/01yrx`), since names repeat.

Shapes: I images, B boxes, V verified labels, K classes.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DatasetError
from .csv_columns import missing_file, read_blocks

logger = logging.getLogger(__name__)

TEXT = "S32"  # of MIDs and image ids, which have at most 16 letters
COORDINATES = ("XMin", "YMin", "XMax", "YMax")
PLAUSIBLE_COORDINATES = (-1.0, 2.0)
EXIF_ORIENTATION = 0x0112
SIDEWAYS_ORIENTATIONS = (5, 6, 7, 8)


@dataclass(frozen=True)
class RowsOfImages:
    """
    Rows that are sorted by image.

    Args:
        offsets: (I + 1,) int64, the first row of each image.
        columns: arrays of one length.
    """

    offsets: np.ndarray
    columns: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RowsInRuns:
    """
    Rows in the order of a file, in which successive rows mostly belong to one image.

    Args:
        run_ids: image of each run of rows, bytes.
        run_lengths: int64.
        columns: arrays of one length.
    """

    run_ids: np.ndarray
    run_lengths: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def concatenate(
        cls, blocks: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]
    ) -> RowsInRuns:
        """From the image ids and the columns of successive blocks."""
        run_ids, run_lengths, columns = [], [], {}
        for image_ids, block in blocks:
            if not len(image_ids):
                continue
            starts = np.flatnonzero(np.append(True, image_ids[1:] != image_ids[:-1]))
            run_ids.append(image_ids[starts])
            run_lengths.append(np.diff(starts, append=len(image_ids)))
            for name, column in block.items():
                columns.setdefault(name, []).append(column)
        return cls(
            np.concatenate(run_ids),
            np.concatenate(run_lengths),
            {name: np.concatenate(parts) for name, parts in columns.items()},
        )

    def of_images(self, image_ids: np.ndarray) -> RowsOfImages:
        """The rows of some images, which are given in ascending order."""
        run_image = np.searchsorted(image_ids, self.run_ids).clip(max=len(image_ids) - 1)
        run_image[image_ids[run_image] != self.run_ids] = len(image_ids)
        image = np.repeat(run_image.astype(np.int32), self.run_lengths)
        counts = np.bincount(image, minlength=len(image_ids) + 1)[:-1]
        columns = self.columns
        if (image[1:] < image[:-1]).any() or counts.sum() < len(image):
            order = np.argsort(image, kind="stable")[: counts.sum()]
            columns = {name: column[order] for name, column in columns.items()}
        return RowsOfImages(np.append(0, np.cumsum(counts)), columns)


def read_class_names(path: str | Path) -> dict[str, str]:
    """
    Names by MID, in the order of the classes.

    Raises:
        DatasetError: the file is missing, or a line is not a MID and a name.
    """
    names: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row:
                    continue
                if len(row) < 2 or not row[0].startswith("/") or row[0] in names:
                    raise DatasetError(
                        f"{path}, line {number}: expected a MID that occurs once and a name, as in "
                        f"'/m/01yrx,Cat', found {','.join(row)!r}: is it another file?"
                    )
                names[row[0]] = row[1]
    except FileNotFoundError as error:
        raise missing_file(path) from error
    if not names:
        raise DatasetError(f"{path}: no classes in it; was the download cut short?")
    return names


def read_hierarchy(path: str | Path) -> dict[str, list[str]]:
    """
    The parents of every class of a hierarchy, by MID, empty at the top.

    A class may be in several places, and then has several parents. The root of the file, which is
    no class, is left out.

    Raises:
        DatasetError: the file is missing, or is not a hierarchy.
    """
    try:
        root = json.loads(Path(path).read_bytes())
        parents: dict[str, list[str]] = {}
        stack = [(child, None) for child in root["Subcategory"]]
        while stack:
            node, parent = stack.pop()
            known = parents.setdefault(node["LabelName"], [])
            if parent is not None and parent not in known:
                known.append(parent)
            stack += [(child, node["LabelName"]) for child in node.get("Subcategory", ())]
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path}: expected nested objects with LabelName and Subcategory "
            f"({type(error).__name__}: {error}): is it another file?"
        ) from error
    return {mid: sorted(known) for mid, known in sorted(parents.items())}


def read_image_size(path: str | Path) -> tuple[int, int]:
    """
    Width and height of an image as Detectron2 will read it, from its header alone.

    Raises:
        DatasetError: the file is missing or is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS_ORIENTATIONS
    except OSError as error:
        raise DatasetError(
            f"image {str(path)!r} is missing or damaged ({error}): get it again; datasets/README.md"
            " shows where images lie"
        ) from error
    return (height, width) if sideways else (width, height)


def read_boxes(path: str, mids: Sequence[str], *, only_with_area: bool) -> RowsInRuns:
    """
    All boxes of a file, in its order.

    Args:
        path: CSV with ImageID, LabelName, IsGroupOf and COORDINATES.
        mids: of the K classes, in their order.
        only_with_area: leave out boxes that are a line or a point.

    Returns:
        rows with the columns "box" (B, 4) float64, "class" (B,) int16 and "is_group_of" (B,) bool.

    Raises:
        DatasetError: the file is missing, empty, or has a box that is none or of no such class.
    """
    types = {"ImageID": TEXT, "LabelName": TEXT, "IsGroupOf": "f4"}
    types.update(dict.fromkeys(COORDINATES, "f8"))
    to_class = _ClassFinder(mids)

    def blocks():
        for block in read_blocks(path, types):
            boxes = np.stack([block[name] for name in COORDINATES], axis=1)
            _check_boxes(boxes, block["ImageID"], path)
            classes = to_class(block["LabelName"])
            if (classes < 0).any():
                unknown = block["LabelName"][np.flatnonzero(classes < 0)[0]].decode()
                raise DatasetError(
                    f"{path}: box of class {unknown!r}, which is not among the {len(mids)} classes "
                    "of the list: use boxes and classes of the same release"
                )
            kept = has_area(boxes) if only_with_area else slice(None)
            columns = {"box": boxes, "class": classes, "is_group_of": block["IsGroupOf"] > 0}
            yield block["ImageID"][kept], {name: c[kept] for name, c in columns.items()}

    return _rows(blocks(), path)


def read_labels(path: str, mids: Sequence[str]) -> RowsInRuns:
    """
    The labels of whole images that people verified, of those among them that are of our classes.

    Args:
        path: CSV with ImageID, LabelName and Confidence.
        mids: of the K classes, in their order.

    Returns:
        rows with the columns "class" (V,) int16 and "is_present" (V,) bool.

    Raises:
        DatasetError: the file is missing or empty, or has a confidence between 0 and 1.
    """
    to_class = _ClassFinder(mids)

    def blocks():
        for block in read_blocks(path, {"ImageID": TEXT, "LabelName": TEXT, "Confidence": "f4"}):
            confidence = block["Confidence"]
            wrong = np.flatnonzero((confidence != 0) & (confidence != 1))
            if len(wrong):
                raise DatasetError(
                    f"{path}: image {block['ImageID'][wrong[0]].decode()} has a label of "
                    f"confidence {confidence[wrong[0]]:g}, expected 1 (present) or 0 (absent): use "
                    "the labels that people verified"
                )
            classes = to_class(block["LabelName"])
            known = classes >= 0  # other releases verify many more classes
            columns = {"class": classes[known], "is_present": confidence[known] > 0}
            yield block["ImageID"][known], columns

    return _rows(blocks(), path)


def _rows(blocks: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]], path: str) -> RowsInRuns:
    try:
        return RowsInRuns.concatenate(blocks)
    except ValueError as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: no rows in it; was the download cut short?") from error


def read_sizes(path: str, image_ids: np.ndarray) -> np.ndarray:
    """
    (I, 2) int32 width and height of images, 0 where the file does not say, or is missing.

    Args:
        path: CSV with ImageID, Width and Height.
        image_ids: (I,) bytes, ascending.
    """
    sizes = np.zeros((len(image_ids), 2), dtype=np.int32)
    if os.path.isfile(path):
        for block in read_blocks(path, {"ImageID": TEXT, "Width": "i4", "Height": "i4"}):
            position = np.searchsorted(image_ids, block["ImageID"]).clip(max=len(image_ids) - 1)
            known = image_ids[position] == block["ImageID"]
            sizes[position[known], 0] = block["Width"][known]
            sizes[position[known], 1] = block["Height"][known]
    unknown = int((sizes <= 0).any(axis=1).sum())
    sizes[(sizes <= 0).any(axis=1)] = 0
    if unknown:
        logger.info(
            "%s has no sizes of %d images, which will be opened for them; `python "
            "datasets/prepare_open_images.py` lists them once",
            path,
            unknown,
        )
    return sizes


def _check_boxes(boxes: np.ndarray, image_ids: np.ndarray, path: str) -> None:
    low, high = PLAUSIBLE_COORDINATES
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)  # NaN is not
    plausible = ((boxes >= low) & (boxes <= high)).all(axis=1)
    wrong = np.flatnonzero(~(ordered & plausible))
    if len(wrong):
        box = dict(zip(COORDINATES, boxes[wrong[0]].tolist()))
        raise DatasetError(
            f"{path}: image {image_ids[wrong[0]].decode()} has the box {box}, expected XMin <= "
            "XMax and YMin <= YMax in [0, 1], shares of width and height: mend or remove it"
        )


def has_area(boxes: np.ndarray) -> np.ndarray:
    """(B,) bool whether boxes (B, 4) left, top, right, bottom are more than a line."""
    return (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


class _ClassFinder:
    """Classes of MIDs, -1 for those that are not known."""

    def __init__(self, mids: Sequence[str]):
        names = np.array([mid.encode() for mid in mids])
        self._order = np.argsort(names).astype(np.int16)
        self._sorted = names[self._order]

    def __call__(self, mids: np.ndarray) -> np.ndarray:
        positions = np.searchsorted(self._sorted, mids).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[positions] == mids, self._order[positions], np.int16(-1))
