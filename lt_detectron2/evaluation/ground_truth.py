"""The annotations of an evaluation set as sorted columns."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from .annotations import VERIFIED, coco_columns, lvis_columns
from .masks import RunLengthMasks


@dataclass(frozen=True)
class GroundTruth:
    """
    Images, categories and annotations of one set.

    Annotations are sorted by cell, that is by (image, category), and within a cell stay in the
    order of the file: ties in matching depend on it. Images and categories are positions in
    `image_ids` and `category_ids`.

    Args:
        image_ids: (I,) int64, ascending.
        image_sizes: (I, 2) int32, height and width; 0 where the file does not say.
        category_ids: (K,) int64, ascending.
        category_names: K names.
        category_frequency: K letters r, c or f; "" where the file does not say.
        cell_flags: (I, K) uint8, a sum of VERIFIED, NOT_EXHAUSTIVE and POSITIVE.
        annotation_ids: (G,) int64.
        image: (G,) int64, the image of each annotation.
        category: (G,) int64, the category of each annotation.
        boxes: (G, 4) float64, x, y, width, height.
        areas: (G,) float64, as annotated (area of the mask, not of the box).
        ignored: (G,) bool; a match with an ignored annotation is neither right nor wrong.
        crowd: (G,) bool, regions of many objects (all ignored): any number of detections match one,
            and their overlap is the share of the detection that lies in it.
        masks: G masks, or None when only boxes are evaluated.
    """

    image_ids: np.ndarray
    image_sizes: np.ndarray
    category_ids: np.ndarray
    category_names: tuple[str, ...]
    category_frequency: tuple[str, ...]
    cell_flags: np.ndarray
    annotation_ids: np.ndarray
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    ignored: np.ndarray
    crowd: np.ndarray
    masks: RunLengthMasks | None = None

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def num_categories(self) -> int:
        return len(self.category_ids)

    @cached_property
    def instance_count(self) -> np.ndarray:
        """(K,) int64, annotations that count of each category."""
        return np.bincount(self.category[~self.ignored], minlength=self.num_categories)

    @cached_property
    def image_count(self) -> np.ndarray:
        """(K,) int64, images with annotations that count of each category."""
        cells = np.unique(self.cell_keys(self.image, self.category)[~self.ignored])
        return np.bincount(cells % self.num_categories, minlength=self.num_categories)

    @cached_property
    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Key, first annotation and number of annotations of each positive cell, keys ascending."""
        return np.unique(
            self.cell_keys(self.image, self.category), return_index=True, return_counts=True
        )

    def cell_keys(self, image: np.ndarray, category: np.ndarray) -> np.ndarray:
        """One int64 per pair of an image and a category."""
        return image * self.num_categories + category

    @cached_property
    def fingerprint(self) -> str:
        """
        Hash of what decides which detections count among objects of all sizes.

        Not of masks, nor of areas: they decide which range of sizes an object belongs to.
        """
        digest = hashlib.sha256()
        for name in ("image_ids", "category_ids", "cell_flags", "image", "category", "boxes"):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        # Crowds as negative numbers, which tells them from the ignored.
        rows = np.concatenate([np.flatnonzero(self.ignored), ~np.flatnonzero(self.crowd)])
        digest.update(rows.astype(np.int64).tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def from_lvis(cls, dataset: Mapping, *, with_masks: bool = False) -> "GroundTruth":
        """
        Builds the index from a loaded LVIS annotation file, by the rules of its official API.

        Args:
            dataset: the top-level object of the file.
            with_masks: keep the masks, for the "segm" task.

        Raises:
            DatasetError: a key is missing, an id occurs twice, or a box is not four finite numbers.
        """
        return cls(**lvis_columns(dataset, with_masks))

    @classmethod
    def from_coco(cls, dataset: Mapping, *, with_masks: bool = False) -> "GroundTruth":
        """As `from_lvis`, of a COCO annotation file, by the rules of pycocotools."""
        return cls(**coco_columns(dataset, with_masks))

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that hold everything, for a file."""
        columns = {
            field.name: np.asarray(getattr(self, field.name))
            for field in fields(self)
            if field.name not in ("masks", "cell_flags")
        }
        # Few cells differ from the one value that the rest has.
        default = VERIFIED if (self.cell_flags & VERIFIED).all() else np.uint8(0)
        flags = self.cell_flags.ravel()
        cells = np.flatnonzero(flags != default)
        columns |= {"default_flag": default, "flagged": cells, "flags": flags[cells]}
        if self.masks is not None:
            columns |= {f"mask_{name}": array for name, array in self.masks.columns().items()}
        return columns

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray]) -> "GroundTruth":
        """The inverse of `columns`."""
        values = {field.name: columns[field.name] for field in fields(cls) if field.name in columns}
        for name in ("category_names", "category_frequency"):
            values[name] = tuple(values[name].tolist())
        flags = np.full(
            len(values["image_ids"]) * len(values["category_ids"]), columns["default_flag"]
        )
        flags[columns["flagged"]] = columns["flags"]
        values["cell_flags"] = flags.reshape(len(values["image_ids"]), -1)
        if "mask_counts" in columns:
            values["masks"] = RunLengthMasks.from_columns(
                {name: columns[f"mask_{name}"] for name in ("counts", "lengths", "sizes")}
            )
        return cls(**values)
