"""Indexes of annotation files, kept beside them so that the next evaluation need not parse them."""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..files import replacing
from .annotations import explain, read_annotations
from .ground_truth import GroundTruth

logger = logging.getLogger(__name__)

CACHE_VERSION = 1
FORMATS = {"lvis": GroundTruth.from_lvis, "coco": GroundTruth.from_coco}


def load_ground_truth(
    path: str, file_format: str, *, with_masks: bool = False, write: bool = True
) -> tuple[GroundTruth | None, list[int]]:
    """
    The index of an annotation file, from its cache if that is of the same content.

    Args:
        path: the annotation file.
        file_format: "lvis" or "coco".
        with_masks: with the masks of the annotations.
        write: keep the index for next time, where that is possible.

    Returns:
        the index, None for a file without annotations, and the category ids in ascending order.

    Raises:
        DatasetError: the file cannot be used; says which one.
    """
    digest = _digest(path)
    cache = Path(path).with_suffix(f".{file_format}_index.npz")
    ground_truth = _read(cache, digest, with_masks)
    if ground_truth is not None:
        return ground_truth, ground_truth.category_ids.tolist()
    dataset = read_annotations(path)
    try:
        if not dataset.get("annotations"):
            return None, sorted(entry["id"] for entry in dataset.get("categories", ()))
        ground_truth = FORMATS[file_format](dataset, with_masks=with_masks)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except Exception as error:  # of a structure that the checks above did not expect
        raise explain(error, dataset, path) from error
    if write:
        _write(cache, digest, ground_truth)
    return ground_truth, ground_truth.category_ids.tolist()


def _read(cache: Path, digest: str, with_masks: bool) -> GroundTruth | None:
    try:
        with np.load(cache, allow_pickle=False) as file:
            if file["digest"].item() != digest or (with_masks and "mask_counts" not in file.files):
                return None
            names = [n for n in file.files if with_masks or not n.startswith("mask_")]
            return GroundTruth.from_columns({name: file[name] for name in names})
    except Exception:  # absent, or damaged in any way; it is only a cache
        return None


def _write(cache: Path, digest: str, ground_truth: GroundTruth) -> None:
    try:
        with replacing(str(cache), "wb") as file:
            np.savez(file, digest=np.array(digest), **ground_truth.columns())
    except OSError as error:  # data sets often lie on read-only disks
        logger.info("The index of the annotations is not cached: %s", error)


def _digest(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    digest = hashlib.sha256(str(CACHE_VERSION).encode())
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
