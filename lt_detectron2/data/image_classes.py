"""Which classes lie in which images of a training set, as columns; what samplers are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import DatasetError
from ..statistics import ClassStatistics
from .record_store import SharedRecords


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """
    P pairs of an image and a class that it holds, ascending by image, then by class.

    Args:
        num_images: N, images without any object included.
        num_classes: K.
        image: (P,) int64, positions in the data set.
        classes: (P,) int64.
        instances: (P,) int64 objects of the class in the image.
    """

    num_images: int
    num_classes: int
    image: Tensor
    classes: Tensor
    instances: Tensor

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]], num_classes: int) -> ImageClasses:
        """
        From Detectron2's records. Crowds do not count: no mapper trains on them.

        Raises:
            DatasetError: an object is of none of the classes.
        """
        if isinstance(records, SharedRecords):
            return cls.from_pairs(len(records), num_classes, *records.objects())
        objects = [
            (index, annotation["category_id"])
            for index, record in enumerate(records)
            for annotation in record.get("annotations", ())
            if not annotation.get("iscrowd", 0)
        ]
        columns = torch.tensor(objects, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return cls.from_pairs(len(records), num_classes, *columns)

    @classmethod
    def from_pairs(
        cls, num_images: int, num_classes: int, image: Tensor, classes: Tensor
    ) -> ImageClasses:
        """
        From the image and the class of every object, both int64 of one shape.

        Raises:
            DatasetError: an object is of none of the classes.
        """
        wrong = (classes < 0) | (classes >= num_classes)
        if wrong.any():  # it would be taken for another class of another image
            raise DatasetError(
                f"expected classes 0..{num_classes - 1}, found an object of class "
                f"{int(classes[wrong][0])}: set NUM_CLASSES to the number of categories of "
                "DATASETS.TRAIN, and give LONG_TAIL.STATISTICS, if any, of the same categories"
            )
        keys, instances = torch.unique(image * num_classes + classes, return_counts=True)
        image = keys.div(num_classes, rounding_mode="floor")
        return cls(num_images, num_classes, image, keys % num_classes, instances)

    @cached_property
    def image_count(self) -> Tensor:
        """(K,) images that hold each class."""
        return torch.bincount(self.classes, minlength=self.num_classes)

    @cached_property
    def instance_count(self) -> Tensor:
        """(K,) objects of each class."""
        return torch.zeros(self.num_classes, dtype=torch.int64).index_add_(
            0, self.classes, self.instances
        )

    def statistics(self, num_images: int | None = None) -> ClassStatistics:
        """The counts, with the number of images that frequencies refer to; N by default."""
        return ClassStatistics(
            self.instance_count,
            self.image_count,
            self.num_images if num_images is None else num_images,
        )

    @cached_property
    def images_by_class(self) -> list[Tensor]:
        """For each class the ascending positions of its images."""
        by_class = self.classes.argsort(stable=True)
        return list(self.image[by_class].split(self.image_count.tolist()))

    def largest(self, values: Tensor, default: float) -> Tensor:
        """(N,) largest of ``values`` (K,) over the classes of each image, at least the default."""
        result = torch.full((self.num_images,), default, dtype=values.dtype)
        return result.scatter_reduce_(0, self.image, values[self.classes], "amax")

    def total(self, values: Tensor) -> Tensor:
        """(N,) sum of ``values`` (K,) over the classes of each image."""
        result = torch.zeros(self.num_images, dtype=values.dtype)
        return result.index_add_(0, self.image, values[self.classes])
