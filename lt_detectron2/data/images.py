"""Reading the images of a data set, and what to say of one that cannot be used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ..errors import DatasetError, reason
from .annotation_schema import shown

Record = dict[str, Any]

WIDE_MODES = ("I", "F")
"""First letters of Pillow's modes of more than 8 bits a channel, which it clips to white."""

RUN_LENGTHS_REMEDY = "set INPUT.MASK_FORMAT bitmask for masks that are no polygons, or mend it"


class CheckedMapper:
    """
    A mapper that says which image could not be used, why, and what to do.

    A missing or damaged image ends a training: leaving it out would change the counts and the
    sampling without a word. CMYK, grey, palette and rotated images (EXIF) are read as they look.

    Args:
        mapper: Detectron2's, or one like it.
    """

    def __init__(self, mapper: Callable[[Record], Record | None]):
        self.mapper = mapper

    def __call__(self, record: Record) -> Record | None:
        """
        The mapped record.

        Raises:
            DatasetError: names the file and the image.
        """
        try:
            _check_depth(record["file_name"])
            return self.mapper(record)
        except DatasetError as error:
            raise DatasetError(f"{_name(record)} {error}") from error
        except Exception as error:  # Pillow's decoders raise many types
            raise DatasetError(f"{_name(record)} {self._explanation(record, error)}") from error

    def _explanation(self, record: Record, error: Exception) -> str:
        file_name = record["file_name"]
        if isinstance(error, SizeMismatchError):
            return _size_mismatch(record)
        if isinstance(error, FileNotFoundError):
            return "does not exist: check the folder of images, or remove the image from the set"
        if isinstance(error, UnidentifiedImageError):
            return "cannot be read: it is empty, damaged or no image; get it again"
        if not _can_be_decoded(file_name):
            return f"cannot be read ({reason(error)}): it is damaged; get it again"
        without = self._error({**record, "annotations": []})
        if without is not None and reason(without) == reason(error):
            return (
                f"cannot be mapped, whatever its annotations ({reason(error)}): check INPUT of the "
                "config, or the mapper"
            )
        for number, annotation in enumerate(record.get("annotations", ())):
            own = self._error({**record, "annotations": [annotation]})
            if own is not None:
                box, segmentation = map(shown, map(annotation.get, ("bbox", "segmentation")))
                is_run_lengths = isinstance(annotation.get("segmentation"), dict)
                remedy = RUN_LENGTHS_REMEDY if is_run_lengths else "mend or remove it"
                return (
                    f"has an annotation, number {number}, with the box {box} and the segmentation "
                    f"{segmentation}, that cannot be used ({reason(own)}): {remedy}"
                )
        return f"has annotations that cannot be used ({reason(error)}): mend or remove them"

    def _error(self, record: Record) -> Exception | None:
        """What the mapper raises for a record."""
        try:
            self.mapper(copy.deepcopy(record))
        except Exception as error:
            return error
        return None


def build_mapper(cfg: CfgNode, is_train: bool) -> CheckedMapper:
    """Detectron2's mapper for a config, checked."""
    return CheckedMapper(DatasetMapper(cfg, is_train))


def _check_depth(file_name: str) -> None:
    # Opening reads the header only.
    with (
        PathManager.open(file_name, "rb") as file,
        Image.open(file) as image,
    ):  # reads the header only
        if image.mode.startswith(WIDE_MODES):
            raise DatasetError(
                f"has more than 8 bits a channel (Pillow's mode {image.mode}): convert it to 8 "
                "bits, scaled as it suits the data"
            )


def _name(record: Record) -> str:
    return f"image {record.get('image_id', '?')!r} ({record.get('file_name')})"


def _size_mismatch(record: Record) -> str:
    with PathManager.open(record["file_name"], "rb") as file, Image.open(file) as image:
        width, height = image.size
    stored = (record.get("width"), record.get("height"))
    turned = ", which its EXIF orientation turns" if (width, height) == stored else ""
    return (
        f"is {width} x {height} pixels{turned}, and {stored[0]} x {stored[1]} in the "
        "annotations: correct them, or save the image upright"
    )


def _can_be_decoded(file_name: str) -> bool:
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            image.load()
    except Exception:  # whatever it is, the mapper could not read it either
        return False
    return True
