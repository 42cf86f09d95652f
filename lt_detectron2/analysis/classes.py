"""Classes in the order of figures, and what is known of them from counts."""

from __future__ import annotations

from collections.abc import Sequence

from ..statistics import GROUP_NAMES, ClassStatistics


def class_columns(statistics: ClassStatistics, order: Sequence[int]) -> dict[str, list]:
    """The first columns of a CSV with a row for each class: rank, name, group, images, objects."""
    names = statistics.class_names or [str(c) for c in range(statistics.num_classes)]
    groups = statistics.frequency_group().tolist()
    return {
        "rank": list(range(len(order))),
        "class": [names[c] for c in order],
        "group": [GROUP_NAMES[groups[c]] for c in order],
        "train_images": [int(statistics.image_count[c]) for c in order],
        "train_instances": [int(statistics.instance_count[c]) for c in order],
    }


def by_frequency(statistics: ClassStatistics) -> list[int]:
    """The classes, that with the most training images first."""
    return statistics.image_count.sort(descending=True, stable=True).indices.tolist()
