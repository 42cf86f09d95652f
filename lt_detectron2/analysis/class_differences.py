"""What a method changes for each class, with the interval that the choice of images leaves open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.bootstrap import Interval
from ..evaluation.report import format_number, text_table
from ..statistics import GROUP_NAMES
from .style import BASELINE_COLOUR, GROUP_COLOURS, new_figure, save, tidy, verbatim

MAX_BARS = 40


@dataclass(frozen=True)
class ClassDifference:
    """
    One class under two runs.

    Args:
        name, group: of the class; the group is "rare", "common", "frequent" or "".
        train_images, val_objects: counts; -1 where nobody knows.
        first, second: its AP in percent.
        difference: second minus first in percent.
    """

    name: str
    group: str
    train_images: int
    val_objects: int
    first: float
    second: float
    difference: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.difference.low > 0 or self.difference.high < 0


def difference_table(classes: Sequence[ClassDifference], labels: tuple[str, str]) -> str:
    """One line a class; a difference is clear where its interval holds no zero."""

    def row(c: ClassDifference) -> list[str]:
        counts = [f"{n:,}" if n >= 0 else "n/a" for n in (c.train_images, c.val_objects)]
        change = (c.difference.value, c.difference.low, c.difference.high)
        # Adding zero turns -0.0 into 0.0.
        numbers = (format_number(round(n, 1) + 0.0, 1) for n in (c.first, c.second, *change))
        return [c.name, c.group or "n/a", *counts, *numbers, "yes" if c.is_clear else "no"]

    header = ["class", "group", "train images", "val objects", *labels]
    return text_table(
        [*header, "difference", "2.5 %", "97.5 %", "clear"], [row(c) for c in classes]
    )


def draw(classes: Sequence[ClassDifference], labels: tuple[str, str], path: str | Path) -> Path:
    """
    Differences of AP with their intervals, one class below the other.

    Of many classes those with the largest differences are shown, in the order given.
    """
    known = [c for c in classes if not math.isnan(c.difference.value)]
    largest = sorted(known, key=lambda c: -abs(c.difference.value))[:MAX_BARS]
    shown = [c for c in known if c in largest]
    figure, axes = new_figure(7.2, 1.2 + 0.24 * len(shown))
    for group in (*GROUP_NAMES, ""):
        rows = [i for i, c in enumerate(shown) if c.group == group]
        if not rows:
            continue
        changes = [shown[i].difference for i in rows]
        values = [change.value for change in changes]
        spread = [
            [max(0.0, change.value - change.low) for change in changes],
            [max(0.0, change.high - change.value) for change in changes],
        ]
        colour = GROUP_COLOURS.get(group, BASELINE_COLOUR)
        axes.errorbar(values, rows, xerr=spread, fmt="o", color=colour, label=group or None)
    axes.axvline(0, color="black", linewidth=0.6)
    names = [verbatim(f"{c.name} ({c.train_images})") for c in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"AP of {labels[1]} minus AP of {labels[0]}, 95 % interval over images")
    axes.set_ylabel("class (training images)")
    if any(c.group for c in shown):
        axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return save(figure, path)
