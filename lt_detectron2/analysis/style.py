"""One look for all figures, in colours that the colour-blind can tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot; a cluster has no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.report import csv_text
from . import fonts

GROUP_COLOURS = {"rare": "#d55e00", "common": "#0072b2", "frequent": "#009e73"}
BASELINE_COLOUR = "#8c8c8c"
RUN_COLOURS = ("#8c8c8c", "#cc79a7", "#0072b2", "#e69f00", "#009e73", "#d55e00")
"""Of runs over each other; the first is the baseline's."""
DOTS_PER_INCH = 130


def new_figure(width: float, height: float, **kwargs) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained", **kwargs)
    return figure, axes


def tidy(axes: Axes) -> None:
    """Remove what carries no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def mark_groups(axes: Axes, groups: Sequence[str]) -> None:
    """
    Dotted lines where the group changes along the x axis, and each group's name above its part.

    Args:
        axes: x counts classes from 0.
        groups: of each class, in the order of the axis.
    """
    changes = [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]
    bounds = [0, *changes, len(groups)]
    for low, high in zip(bounds, bounds[1:]):
        if low:
            axes.axvline(low - 0.5, color="black", linewidth=0.6, linestyle=":")
        axes.annotate(
            groups[low],
            ((low + high - 1) / 2, 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8,
            color=GROUP_COLOURS.get(groups[low], "black"),
        )
    axes.set_xlim(-0.5 - 0.01 * len(groups), len(groups) - 0.5 + 0.01 * len(groups))


def verbatim(text: str) -> str:
    """What shows as this text: matplotlib takes what is between two dollars for a formula."""
    fonts.provide(text)
    return text.replace("$", r"\$")


def to_pixels(figure: Figure) -> np.ndarray:
    """(3, height, width) uint8 picture of a figure, as TensorBoard takes it; closes it."""
    fonts.use_in(figure)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, :3].transpose(2, 0, 1).copy()
    plt.close(figure)
    return pixels


@contextmanager
def closing_unfinished() -> Iterator[None]:
    """Inside, an error closes the figures that were begun there, and no others."""
    others = plt.get_fignums()
    try:
        yield
    except BaseException:
        for number in set(plt.get_fignums()).difference(others):
            plt.close(number)
        raise


def save(
    figure: Figure, path: str | Path, columns: Mapping[str, Sequence[Any]] | None = None
) -> Path:
    """
    Write the figure as PNG, and its numbers as CSV beside it; makes their folder.

    Args:
        figure: closed afterwards.
        path: of the PNG.
        columns: of the CSV, by name, all of one length; None writes no CSV.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fonts.use_in(figure)
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")
    plt.close(figure)
    if columns is not None:
        write_csv(path.with_suffix(".csv"), columns)
    return path


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Columns by name; raises ValueError unless all have one length."""
    if len({len(column) for column in columns.values()}) > 1:
        lengths = {name: len(column) for name, column in columns.items()}
        raise ValueError(f"expected columns of one length, got {lengths}")
    cells = {name: [_cell(value) for value in column] for name, column in columns.items()}
    path.write_text(csv_text(cells), encoding="utf-8")


def _cell(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.6g}" if isinstance(value, float) else str(value)
