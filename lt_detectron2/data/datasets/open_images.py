"""
Open Images Challenge 2019: 500 classes, 12 million boxes in 1.7 million images.

The annotations are kept as columns, and a record is made when somebody asks for it: as dicts they
would fill the memory of most machines; `open_images_files.py` reads them.

Shapes: I images, B boxes, V verified labels, K classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...errors import DatasetError
from ...statistics import ClassStatistics
from ..synthetic import datasets_root
from .metadata import DerivedMetadata
from .open_images_files import (
    RowsOfImages,
    has_area,
    read_boxes,
    read_class_names,
    read_hierarchy,
    read_image_size,
    read_labels,
    read_sizes,
)

logger = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "validation"}
"""Our name of each split, and the one in the files of the challenge."""


@dataclass(frozen=True)
class OpenImagesFiles:
    """
    Where the files of a split are.

    Args:
        boxes: CSV with the columns ImageID, LabelName, XMin, XMax, YMin, YMax, IsGroupOf.
        labels: CSV with ImageID, LabelName, Confidence (1 present, 0 absent), verified by people.
            A training set may do without.
        classes: CSV of MID and name, without a line of column names; class i is line i.
        hierarchy: JSON of nested LabelName and Subcategory.
        sizes: CSV with ImageID, Width, Height. Without it, images are opened when asked for.
        images: folder of <image id>.jpg; or else the common beginning of sixteen folders
            <images>_0 to <images>_f, by the first letter of the id.
    """

    boxes: str
    labels: str
    classes: str
    hierarchy: str
    sizes: str
    images: str


def challenge_files(split: str) -> OpenImagesFiles:
    """The files of "train" or "val" under $DETECTRON2_DATASETS."""
    root, part = datasets_root() / "openimages", SPLITS[split]
    folder = root / "annotations"
    return OpenImagesFiles(
        boxes=str(folder / f"challenge-2019-{part}-detection-bbox.csv"),
        labels=str(folder / f"challenge-2019-{part}-detection-human-imagelabels.csv"),
        classes=str(folder / "challenge-2019-classes-description-500.csv"),
        hierarchy=str(folder / "challenge-2019-label500-hierarchy.json"),
        sizes=str(folder / f"{part}-image-sizes.csv"),
        images=str(root / part),
    )


class OpenImagesMetadata(DerivedMetadata):
    """
    Metadata that are read from files in the format of the challenge.

    Attributes:
        files: where they are.
        only_with_boxes: boxes without area, and images without a box, are left out, as for
            training.
        annotation_file: the CSV of boxes.
        counted_files: that and the CSV of classes, whose order numbers them.
        image_root: folder of images.
        class_ids: K MIDs.
        thing_classes: K names. They repeat: "Mouse" is an animal and a device.
        thing_dataset_id_to_contiguous_id: classes 0..K-1 by MID.
        hierarchy: parents by MID, as :func:`read_hierarchy` gives them.
    """

    @property
    def annotation_file(self) -> str:
        return self.files.boxes

    @property
    def counted_files(self) -> tuple[str, str]:
        return self.files.boxes, self.files.classes

    @property
    def image_root(self) -> str:
        return self.files.images

    @property
    def class_ids(self) -> list[str]:
        return list(read_class_names(self.files.classes))

    @property
    def thing_classes(self) -> list[str]:
        return list(read_class_names(self.files.classes).values())

    @property
    def thing_dataset_id_to_contiguous_id(self) -> dict[str, int]:
        return {mid: index for index, mid in enumerate(self.class_ids)}

    @property
    def hierarchy(self) -> dict[str, list[str]]:
        return read_hierarchy(self.files.hierarchy)


class ChallengeMetadata(OpenImagesMetadata):
    """Metadata of a split of the challenge; its files follow $DETECTRON2_DATASETS."""

    @property
    def files(self) -> OpenImagesFiles:
        return challenge_files(self.split)


def register_all_open_images() -> None:
    """Registers `openimages_challenge2019_train` and `openimages_challenge2019_val`."""
    for split in SPLITS:
        name = f"openimages_challenge2019_{split}"
        DatasetCatalog.register(name, lambda name=name: load_open_images(name))
        MetadataCatalog[name] = ChallengeMetadata(
            name=name,
            evaluator_type="open_images",
            split=split,
            only_with_boxes=split == "train",
        )


def register_open_images(name: str, files: OpenImagesFiles, *, only_with_boxes: bool) -> None:
    """
    Registers other files in the format of the challenge; nothing is read.

    Args:
        name: of the data set.
        files: where they are.
        only_with_boxes: True for training, which has no use for boxes without area and images
            without a box. An evaluation keeps both, and images that have labels alone.
    """
    if name in DatasetCatalog.list():
        raise DatasetError(f"data set {name!r} is registered already: choose another name")
    DatasetCatalog.register(name, lambda: load_open_images(name))
    MetadataCatalog[name] = OpenImagesMetadata(
        name=name, evaluator_type="open_images", files=files, only_with_boxes=only_with_boxes
    )


def load_open_images(name: str) -> OpenImagesRecords:
    """
    The records of a registered set. The files are parsed once, until one of them changes.

    Raises:
        DatasetError: a file is missing or cannot be read, or a box has an unknown class or no
            coordinates.
    """
    metadata = MetadataCatalog.get(name)
    files = metadata.files
    paths = (files.boxes, files.labels, files.classes, files.sizes)
    return _read_records(files, metadata.only_with_boxes, tuple(map(_state_of_file, paths)))


def _state_of_file(path: str) -> tuple[int, int]:
    if not os.path.isfile(path):
        return 0, 0
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2)  # one set to train on and one to evaluate on
def _read_records(
    files: OpenImagesFiles, only_with_boxes: bool, states: tuple[tuple[int, int], ...]
) -> OpenImagesRecords:
    names = read_class_names(files.classes)
    boxes = read_boxes(files.boxes, list(names), only_with_area=only_with_boxes)
    labels = None
    if os.path.isfile(files.labels) or not only_with_boxes:
        labels = read_labels(files.labels, list(names))
    image_ids = np.unique(boxes.run_ids)
    if not only_with_boxes:
        image_ids = np.union1d(image_ids, labels.run_ids)
    records = OpenImagesRecords(
        image_ids,
        boxes.of_images(image_ids),
        None if labels is None else labels.of_images(image_ids),
        sizes=read_sizes(files.sizes, image_ids),
        class_names=tuple(names.values()),
        image_folder=files.images,
    )
    logger.info(
        "%s: %s boxes of %d classes in %s images, %.0f MiB",
        files.boxes,
        f"{len(records.classes):,}",
        len(names),
        f"{len(records):,}",
        records.nbytes / 2**20,
    )
    return records


class OpenImagesRecords(torch.utils.data.Dataset, Sequence):
    """
    Records of images in Detectron2's format, made from columns when they are asked for.

    Detectron2's loaders take it as they take a list. Beyond the usual fields, annotations have
    `is_group_of` (the box is around more than five objects that touch), and records have
    `pos_category_ids` and `neg_category_ids`, the classes that people have seen, or have not
    found, in the image; these two only where there is a file of labels.

    Attributes:
        image_ids: (I,) bytes, ascending.
        box_offsets: (I + 1,) int64; the boxes of image i are those from the i-th to the next.
        boxes: (B, 4) float64 left, top, right, bottom as shares of width and height.
        classes: (B,) int16.
        is_group_of: (B,) bool.
        label_offsets: (I + 1,) int64, or None without labels.
        label_classes: (V,) int16, or None.
        label_is_present: (V,) bool, or None.
        sizes: (I, 2) int32 width and height, 0 where not known.
    """

    def __init__(
        self,
        image_ids: np.ndarray,
        boxes: RowsOfImages,
        labels: RowsOfImages | None,
        *,
        sizes: np.ndarray,
        class_names: tuple[str, ...],
        image_folder: str,
    ):
        self.image_ids = image_ids
        self.box_offsets = boxes.offsets
        self.boxes = boxes.columns["box"]
        self.classes = boxes.columns["class"]
        self.is_group_of = boxes.columns["is_group_of"]
        self.label_offsets = self.label_classes = self.label_is_present = None
        if labels is not None:
            self.label_offsets = labels.offsets
            self.label_classes = labels.columns["class"]
            self.label_is_present = labels.columns["is_present"]
        self.sizes = sizes
        self.class_names = class_names
        self._image_folder = image_folder
        self._by_letter = not os.path.isdir(image_folder)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._record(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._record(int(index) % len(self))

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        return sum(v.nbytes for v in vars(self).values() if isinstance(v, np.ndarray))

    def class_statistics(self) -> ClassStatistics:
        """Counts of boxes with an area, which are those that are trained on."""
        image = np.repeat(np.arange(len(self)), np.diff(self.box_offsets))
        used = has_area(self.boxes)
        classes, image = self.classes[used].astype(np.int64), image[used]
        num_classes = len(self.class_names)
        pairs = np.sort(image * num_classes + classes)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        return ClassStatistics(
            instance_count=np.bincount(classes, minlength=num_classes),
            image_count=np.bincount(pairs % num_classes, minlength=num_classes),
            num_images=np.count_nonzero(np.bincount(image)),
            class_names=self.class_names,
        )

    def image_path(self, index: int) -> str:
        """The file of an image."""
        id = self.image_ids[index].decode()
        folder = f"{self._image_folder}_{id[0]}" if self._by_letter else self._image_folder
        return os.path.join(folder, f"{id}.jpg")

    def image_size(self, index: int) -> tuple[int, int]:
        """
        Width and height in pixels.

        Raises:
            DatasetError: they are not listed, and the image is missing or is none.
        """
        width, height = self.sizes[index].tolist()
        return (width, height) if width else read_image_size(self.image_path(index))

    def _record(self, index: int) -> dict[str, Any]:
        width, height = self.image_size(index)
        rows = slice(self.box_offsets[index], self.box_offsets[index + 1])
        record = {
            "file_name": self.image_path(index),
            "image_id": self.image_ids[index].decode(),
            "width": width,
            "height": height,
        }
        if self.label_offsets is not None:
            labels = slice(self.label_offsets[index], self.label_offsets[index + 1])
            classes, is_present = self.label_classes[labels], self.label_is_present[labels]
            record["pos_category_ids"] = np.unique(classes[is_present]).tolist()
            record["neg_category_ids"] = np.unique(classes[~is_present]).tolist()
        boxes = self.boxes[rows] * np.array([width, height, width, height])
        record["annotations"] = [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": category,
                "iscrowd": 0,
                "is_group_of": is_group_of,
            }
            for box, category, is_group_of in zip(
                boxes.tolist(), self.classes[rows].tolist(), self.is_group_of[rows].tolist()
            )
        ]
        return record
