"""Episodes for SimCal: every image comes with the class that it was drawn for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from detectron2.data import DatasetFromList
from torch.utils.data import Dataset, Sampler

from .samplers import EpisodicSampler

IS_SAMPLED = "gt_is_sampled"
"""Field of the ground truth: whether an object is of the class that its image was drawn for."""

SAMPLED_CLASS = "sampled_class"
"""Key of a record: the class that it was drawn for."""

Record = dict[str, Any]


class LabelledEpisodes(Sampler):
    """
    The images of an EpisodicSampler, each as one number together with the class it was drawn for.

    Loaders pass whole numbers only: image + num_images * class, see :class:`LabelledRecords`.
    """

    def __init__(self, sampler: EpisodicSampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return islice(self._stream(), self.sampler.rank, None, self.sampler.world_size)

    def _stream(self) -> Iterator[int]:
        num_images = self.sampler.images.num_images
        for images, classes in self.sampler.episodes():
            yield from (i + num_images * c for i, c in zip(images, classes))


class LabelledRecords(Dataset):
    """Records by the numbers of LabelledEpisodes, with the class under SAMPLED_CLASS."""

    def __init__(self, records: Sequence[Record]):
        is_list = isinstance(records, list)
        self.records = DatasetFromList(records, copy=False) if is_list else records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Record:
        sampled_class, image = divmod(number, len(self.records))
        return {**self.records[image], SAMPLED_CLASS: sampled_class}


class MarkSampledObjects:
    """
    A mapper that marks the objects of the class that an image was drawn for, under IS_SAMPLED.

    Detectron2 hands fields of this kind on to regions.

    Args:
        mapper: makes training inputs of records; what it makes keeps SAMPLED_CLASS.
    """

    def __init__(self, mapper: Callable[[Record], Record | None]):
        self.mapper = mapper

    def __call__(self, record: Record) -> Record | None:
        mapped = self.mapper(record)
        if mapped is not None:
            instances = mapped["instances"]
            instances.set(IS_SAMPLED, instances.gt_classes == record[SAMPLED_CLASS])
        return mapped
