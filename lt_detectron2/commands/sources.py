"""Where class counts come from on a command line: a JSON, a registered data set or a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DatasetError

if TYPE_CHECKING:
    from ..statistics import ClassStatistics

SOURCE_HELP = (
    "annotations in COCO or LVIS format (.json), the name of a registered data set, or counts: a "
    "checkpoint of ours (.pth) or class_statistics.json"
)
MAX_COUNTS_BYTES = 1 << 24
"""Annotation files may have a gigabyte; files of counts stay below this size."""


def read_source(source: str, images: str = "") -> ClassStatistics:
    """
    Class statistics of what a user names.

    Args:
        source: see SOURCE_HELP.
        images: the folder of images of an annotation file; that of the file if empty.

    Raises:
        DatasetError: there is no such thing, or it holds no counts.
    """
    from ..data.datasets.custom import register_annotations
    from ..data.statistics import dataset_statistics, read_statistics

    if is_annotation_file(source):
        return dataset_statistics((register_annotations(source, images),))
    if Path(source).suffix in (".json", ".pth", ".pt"):
        return read_statistics(source)
    if Path(source).is_dir():
        raise DatasetError(f"{source!r} is a folder: give {SOURCE_HELP}")
    return dataset_statistics((source,))


def is_annotation_file(source: str) -> bool:
    """Whether a source is a JSON file that holds more than counts."""
    path = Path(source)
    if path.suffix != ".json":
        return False
    if not path.is_file():
        raise DatasetError(f"no file {source!r}: give {SOURCE_HELP}")
    if path.stat().st_size > MAX_COUNTS_BYTES:
        return True
    try:
        return "instance_count" not in json.loads(path.read_bytes())
    except (ValueError, TypeError):
        return True  # whoever reads it as annotations says what is wrong
