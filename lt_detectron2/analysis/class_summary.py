"""The classes of a training set in words and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..data.repeat_factors import auto_threshold, class_repeat_factors
from ..evaluation.report import text_table
from ..statistics import GROUP_NAMES, MAX_COMMON_IMAGES, MAX_RARE_IMAGES, ClassStatistics


def imbalance_factor(statistics: ClassStatistics) -> float:
    """Images of the largest class by those of the smallest that has any; 1 is balanced."""
    counts = statistics.image_count[statistics.image_count > 0]
    return float(counts.max() / counts.min()) if len(counts) else math.nan


def class_names(statistics: ClassStatistics) -> tuple[str, ...]:
    """K names; numbers where nobody knows them."""
    return statistics.class_names or tuple(str(c) for c in range(statistics.num_classes))


def group_sizes(statistics: ClassStatistics, *, present_only: bool = False) -> dict[str, int]:
    """Classes in each group, by its name; all, among which those without images are rare ones."""
    groups = statistics.frequency_group()
    if present_only:
        groups = groups[statistics.image_count > 0]
    return dict(zip(GROUP_NAMES, groups.bincount(minlength=len(GROUP_NAMES)).tolist()))


def describe(statistics: ClassStatistics) -> list[str]:
    """What there is and how imbalanced it is, in a few lines."""
    counts, names = statistics.image_count, class_names(statistics)
    lines = [
        f"{int(statistics.instance_count.sum()):,} objects of {statistics.num_classes} classes in "
        f"{statistics.num_images:,} images with objects"
    ]
    if not int(counts.sum()):
        return lines
    largest = int(counts.argmax())
    smallest = int(counts.where(counts > 0, counts.max() + 1).argmin())
    lines.append(
        f"imbalance factor {imbalance_factor(statistics):,.4g}: {names[largest]!r} is in "
        f"{int(counts[largest]):,} images, {names[smallest]!r} in {int(counts[smallest]):,}"
    )
    sizes = ", ".join(f"{size} {name}" for name, size in group_sizes(statistics).items())
    lines.append(
        f"groups: {sizes} (rare: up to {MAX_RARE_IMAGES} images, common: up to {MAX_COMMON_IMAGES})"
    )
    absent = [names[c] for c in (counts == 0).nonzero().flatten().tolist()]
    if absent:
        listed = ", ".join(map(repr, absent[:10])) + (", ..." if len(absent) > 10 else "")
        lines.append(f"without any image, so that nobody can learn them: {listed}")
    return lines


def class_table(statistics: ClassStatistics, max_rows: int) -> str:
    """
    One line a class, most frequent first.

    Args:
        max_rows: of more classes than that, the most and the least frequent ones are shown.
    """
    order = statistics.image_count.argsort(descending=True, stable=True).tolist()
    groups = [GROUP_NAMES[g] for g in statistics.frequency_group().tolist()]
    names = class_names(statistics)
    factors = class_repeat_factors(statistics, auto_threshold(statistics)).tolist()
    images, objects = statistics.image_count.tolist(), statistics.instance_count.tolist()

    def row(c: int) -> list[str]:
        per_image = f"{objects[c] / images[c]:.1f}" if images[c] else "n/a"
        return [
            *(names[c], groups[c], f"{images[c]:,}", f"{objects[c]:,}"),
            *(per_image, f"{factors[c]:.2f}"),
        ]

    header = ["class", "group", "images", "objects", "per image", "repeat factor"]
    if len(order) <= max_rows:
        return text_table(header, [row(c) for c in order])
    half = max_rows // 2
    hidden = ["...", *("" for _ in header[1:])]
    rows: Sequence[list[str]] = [
        *(row(c) for c in order[:half]),
        hidden,
        *(row(c) for c in order[-half:]),
    ]
    return text_table(header, rows)


def describe_repetition(statistics: ClassStatistics) -> str:
    """What repeat-factor sampling with the threshold "auto" would do."""
    threshold = auto_threshold(statistics)
    factors = class_repeat_factors(statistics, threshold)
    repeated = int((factors > 1).sum())
    if not repeated:
        return "Repeat-factor sampling would repeat nothing: every class is frequent."
    return (
        f"Repeat factors are for LONG_TAIL.REPEAT_THRESHOLD auto, here {threshold:.4g} or "
        f"{threshold * statistics.num_images:.4g} images: {repeated} classes are repeated, up to "
        f"{float(factors.max()):.1f} times."
    )
