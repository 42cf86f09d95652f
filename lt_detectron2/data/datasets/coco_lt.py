"""
COCO-LT: long-tailed training sets cut from COCO 2017. Two different sets go by this name.

`coco_lt_bags_*` is that of BAGS (https://arxiv.org/abs/2006.10408, supplementary): 64,504 objects,
as many of the k-th largest category as the aligned category of LVIS v0.5 has. `coco_lt_simcal_*` is
that of SimCal (https://arxiv.org/abs/2007.11978), also used by FBS-AEGL: 99,411 images, in which 60
of the 80 categories keep their annotations in listed images only. Both are evaluated on the whole
of val2017. In both, objects whose annotation was removed stay in the pictures, as background.

`python datasets/prepare_coco_lt.py` makes the training annotations from those of COCO.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ...errors import DatasetError
from ..synthetic import datasets_root
from .annotation_json import read_annotation_json, write_annotation_json
from .coco_lt_rules import (
    BAGS_TARGETS,
    AnnotationColumns,
    ListedImages,
    select_by_profile,
    select_listed,
)
from .metadata import RootedMetadata

CONSTRUCTIONS = ("bags", "simcal")
INSTANCE_BIN_EDGES = {"bags": (10, 100, 1000), "simcal": (20, 400, 8000)}
"""Training objects that separate the groups AP_1..AP_4 of each construction."""

COCO_TRAIN_JSON = "coco/annotations/instances_train2017.json"
COCO_VAL_JSON = "coco/annotations/instances_val2017.json"
SIMCAL_NUM_IMAGES = 99411


def coco_lt_json(construction: str) -> str:
    """The training annotations of a construction, relative to the root of all data sets."""
    return f"coco_lt/coco_lt_{construction}_train.json"


def register_all_coco_lt() -> None:
    """Registers `coco_lt_<bags|simcal>_<train|val>`."""
    for construction in CONSTRUCTIONS:
        train_json = coco_lt_json(construction)
        _register(construction, "train", train_json, "coco/train2017")
        _register(construction, "val", COCO_VAL_JSON, "coco/val2017")


def _register(construction: str, split: str, json_path: str, image_path: str) -> None:
    name = f"coco_lt_{construction}_{split}"
    DatasetCatalog.register(name, lambda: load_coco_lt(name))
    MetadataCatalog[name] = CocoLTMetadata(
        name=name,
        evaluator_type="coco",
        json_path=json_path,
        image_path=image_path,
        construction=construction,
        instance_bin_edges=INSTANCE_BIN_EDGES[construction],
    )


class CocoLTMetadata(RootedMetadata):
    """
    Metadata of COCO's 80 categories.

    Attributes:
        construction: "bags" or "simcal".
        instance_bin_edges: training objects that separate the groups AP_1..AP_4.
    """

    @property
    def thing_classes(self) -> list[str]:
        return [category["name"] for category in _things()]

    @property
    def thing_colors(self) -> list[list[int]]:
        return [category["color"] for category in _things()]

    @property
    def thing_dataset_id_to_contiguous_id(self) -> dict[int, int]:
        return {category["id"]: index for index, category in enumerate(_things())}


def _things() -> list[dict[str, Any]]:
    return [category for category in COCO_CATEGORIES if category["isthing"]]


def load_coco_lt(name: str) -> list[dict[str, Any]]:
    """
    Records of a registered COCO-LT set.

    Raises:
        DatasetError: its annotations are missing; says how to get them.
    """
    metadata = MetadataCatalog.get(name)
    if not os.path.isfile(metadata.json_file):
        if metadata.json_path == COCO_VAL_JSON:
            remedy = "get the annotations of COCO 2017 from https://cocodataset.org/#download"
        else:
            remedy = f"make it with: python datasets/prepare_coco_lt.py {metadata.construction}"
        raise DatasetError(f"{name!r}: file {metadata.json_file!r} is missing; {remedy}")
    return load_coco_json(metadata.json_file, metadata.image_root, name)


def build_coco_lt(
    construction: str,
    *,
    listed: Mapping[int, ListedImages] | None = None,
    seed: int = 0,
    root: str | Path | None = None,
) -> Path:
    """
    Writes the training annotations of COCO-LT; the file appears complete or not at all.

    Args:
        construction: "bags" or "simcal".
        listed: the images of each category, for "simcal".
        seed: of the choice of images, for "bags".
        root: of all data sets; $DETECTRON2_DATASETS by default.

    Returns:
        The file that was written.

    Raises:
        DatasetError: COCO's annotations are missing or are not those of train2017, or the file
            cannot be written.
    """
    root = datasets_root() if root is None else Path(root)
    source = root / COCO_TRAIN_JSON
    if not source.is_file():
        raise DatasetError(
            f"COCO's annotations are missing: expected {str(source)!r}; get 'annotations_trainval"
            "2017' from https://cocodataset.org/#download, or set DETECTRON2_DATASETS to the "
            "folder that holds your data sets"
        )
    dataset = read_annotation_json(source)
    annotations = AnnotationColumns.from_entries(dataset.get("annotations", []))
    if construction == "bags":
        selection = select_by_profile(annotations, BAGS_TARGETS, seed)
    elif construction == "simcal":
        selection = select_listed(annotations, listed or {})
    else:
        raise ValueError(f"expected a construction among {CONSTRUCTIONS}, got {construction!r}")

    kept_images = set(annotations.image_ids[selection].tolist())
    if construction == "simcal" and len(kept_images) != SIMCAL_NUM_IMAGES:
        raise DatasetError(
            f"{len(kept_images)} images remain, expected {SIMCAL_NUM_IMAGES}: use the annotations "
            "of COCO train2017 as they come"
        )
    info = {
        **dataset.get("info", {}),
        "coco_lt": {
            "construction": construction,
            "seed": seed if construction == "bags" else None,
            "source": source.name,
            "annotation_ids_sha256": _digest(annotations.ids[selection]),
        },
    }
    content = {
        "info": info,
        "licenses": dataset.get("licenses", []),
        "categories": dataset["categories"],
        "images": [image for image in dataset["images"] if image["id"] in kept_images],
    }
    kept = [dataset["annotations"][row] for row in np.flatnonzero(selection)]
    target = root / coco_lt_json(construction)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_annotation_json(content, kept, target)
    except OSError as error:
        raise DatasetError(
            f"{str(target)!r} cannot be written ({error.strerror}): set DETECTRON2_DATASETS to a "
            "folder that can, with COCO's annotations in it"
        ) from error
    return target


def _digest(ids: np.ndarray) -> str:
    """Hash of a choice of annotations, to compare with somebody else's."""
    return hashlib.sha256(np.sort(ids).astype("<i8").tobytes()).hexdigest()
