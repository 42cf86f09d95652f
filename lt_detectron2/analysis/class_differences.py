"""What a method changes for each class, with the interval that the choice of images leaves open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..evaluation.bootstrap import Interval
from ..evaluation.report import format_count, format_number, text_table
from ..statistics import GROUP_NAMES
from .style import BASELINE_COLOUR, GROUP_COLOURS, new_figure, save, tidy, verbatim

MAX_BARS = 40
MIN_IMAGES = 10
"""
Samples of fewer images with a class say too little: of one image, they all give the same AP, and
the interval is a point.
"""


@dataclass(frozen=True)
class ClassDifference:
    """
    One class under two runs.

    Args:
        name, group: of the class; the group is "rare", "common", "frequent" or "".
        train_images: -1 where nobody knows.
        val_images: validation images that show it.
        val_objects: its objects there.
        first, second: its AP in percent.
        difference: second minus first in percent.
    """

    name: str
    group: str
    train_images: int
    val_images: int
    val_objects: int
    first: float
    second: float
    difference: Interval

    @property
    def has_enough_images(self) -> bool:
        """Whether the interval can be believed."""
        return self.val_images >= MIN_IMAGES

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out; chance alone does that to 5 % of the classes."""
        leaves_zero_out = self.difference.low > 0 or self.difference.high < 0
        return self.has_enough_images and leaves_zero_out


def difference_table(classes: Sequence[ClassDifference], labels: tuple[str, str]) -> str:
    """One line a class; a difference is clear where its interval holds no zero."""

    def row(c: ClassDifference) -> list[str]:
        counts = [format_count(n) for n in (c.train_images, c.val_images, c.val_objects)]
        change = (c.difference.value, c.difference.low, c.difference.high)
        # Adding zero turns -0.0 into 0.0.
        numbers = (format_number(round(n, 1) + 0.0, 1) for n in (c.first, c.second, *change))
        clear = ("no", "yes")[c.is_clear] if c.has_enough_images else "too few images"
        return [c.name, c.group or "n/a", *counts, *numbers, clear]

    header = ["class", "group", "train images", "val images", "val objects", *labels]
    return text_table(
        [*header, "difference", "2.5 %", "97.5 %", "clear"], [row(c) for c in classes]
    )


def draw(classes: Sequence[ClassDifference], labels: tuple[str, str], path: str | Path) -> Path:
    """
    Differences of AP with their intervals, one class below the other.

    Of many classes those with the largest differences are shown, in the order given. Marks are open
    where too few images show the class for its interval to be believed.
    """
    known = [c for c in classes if not math.isnan(c.difference.value)]
    largest = sorted(known, key=lambda c: -abs(c.difference.value))[:MAX_BARS]
    shown = [c for c in known if c in largest]
    figure, axes = new_figure(7.2, 1.2 + 0.24 * len(shown))
    for group, is_open in product((*GROUP_NAMES, ""), (False, True)):
        rows = [
            i
            for i, c in enumerate(shown)
            if c.group == group and c.has_enough_images is not is_open
        ]
        if not rows:
            continue
        changes = [shown[i].difference for i in rows]
        values = [change.value for change in changes]
        spread = [
            [max(0.0, change.value - change.low) for change in changes],
            [max(0.0, change.high - change.value) for change in changes],
        ]
        colour = GROUP_COLOURS.get(group, BASELINE_COLOUR)
        label = f"{group}, fewer than {MIN_IMAGES} images" if is_open else group
        style = {"color": colour, "mfc": "white" if is_open else colour}
        axes.errorbar(values, rows, xerr=spread, fmt="o", **style, label=label.strip(", ") or None)
    axes.axvline(0, color="black", linewidth=0.6)
    names = [verbatim(f"{c.name} ({format_count(c.train_images)})") for c in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"AP of {labels[1]} minus AP of {labels[0]}, 95 % interval over images")
    axes.set_ylabel("class (training images)")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return save(figure, path)
