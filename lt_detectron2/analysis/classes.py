"""Classes in the order of figures, and what is known of them from counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..statistics import GROUP_NAMES, ClassStatistics
from .class_summary import class_names

SOURCE_HELP = "a registered data set, a checkpoint of ours (.pth) or class_statistics.json"


def read_counts(source: str) -> ClassStatistics:
    """
    Class statistics of what SOURCE_HELP lists.

    Raises:
        DatasetError: there is no such thing, or it holds no counts.
    """
    from ..data import datasets  # noqa: F401  registers data sets
    from ..data.statistics import dataset_statistics, read_statistics

    if Path(source).suffix in (".pth", ".pt", ".json"):
        return read_statistics(source)
    return dataset_statistics((source,))


def by_frequency(statistics: ClassStatistics) -> list[int]:
    """The classes, that with the most training images first."""
    return statistics.image_count.sort(descending=True, stable=True).indices.tolist()


def groups_of(statistics: ClassStatistics) -> list[str]:
    """K names of frequency groups."""
    return [GROUP_NAMES[group] for group in statistics.frequency_group().tolist()]


def class_columns(statistics: ClassStatistics, order: Sequence[int]) -> dict[str, list]:
    """The first columns of a CSV with a row for each class: rank, name, group, images, objects."""
    names, groups = class_names(statistics), groups_of(statistics)
    return {
        "rank": list(range(len(order))),
        "class": [names[c] for c in order],
        "group": [groups[c] for c in order],
        "train_images": [int(statistics.image_count[c]) for c in order],
        "train_instances": [int(statistics.instance_count[c]) for c in order],
    }
