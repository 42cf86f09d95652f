"""Losses, learning rate and AP over a training, as it wrote them into metrics.json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...engine.validation_loss import PREFIX
from ...engine.writers import METRICS_FILE
from ..style import GROUP_COLOURS, RUN_COLOURS, new_figure, save, tidy

METRICS = {
    "AP": "black",
    "APr": GROUP_COLOURS["rare"],
    "APc": GROUP_COLOURS["common"],
    "APf": GROUP_COLOURS["frequent"],
}
MAX_TERMS = len(RUN_COLOURS) - 1

Entries = Sequence[dict[str, Any]]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Entries of metrics.json by iteration; of one that was done twice, the later numbers."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    by_iteration: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short when the training was stopped
        by_iteration.setdefault(entry["iteration"], {}).update(entry)
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def curve(entries: Entries, name: str) -> tuple[list[int], list[float]]:
    """Iterations and values of a number, where it is one."""
    points = [(e["iteration"], e[name]) for e in entries if name in e]
    points = [(iteration, value) for iteration, value in points if math.isfinite(value)]
    return [iteration for iteration, _ in points], [value for _, value in points]


def draw_training(entries: Entries, path: Path) -> Path:
    """The total loss and its largest terms; beside them the learning rate."""
    figure, (left, right) = new_figure(8.6, 3.1, ncols=2, width_ratios=(2.2, 1))
    total = curve(entries, "total_loss")
    left.plot(*total, color="black", linewidth=1.6, label="total")
    for name, colour in zip(_terms(entries)[:MAX_TERMS], RUN_COLOURS[1:]):
        left.plot(*curve(entries, name), color=colour, linewidth=1, label=name)
    measured = curve(entries, f"{PREFIX}total_loss")
    if measured[0]:
        style = {"color": "black", "linestyle": "--", "marker": "o", "markersize": 3}
        left.plot(*measured, **style, linewidth=1, label="total, validation")
    left.set_ylim(0, _most(total[1]))
    left.set_ylabel("loss")
    left.legend(frameon=False, fontsize=7.5)
    right.plot(*curve(entries, "lr"), color="black", linewidth=1.2)
    right.set_ylim(bottom=0)
    right.set_ylabel("learning rate")
    for axes in (left, right):
        axes.set_xlabel("iteration")
        tidy(axes)
    return save(figure, path)


def draw_ap(entries: Entries, task: str, path: Path) -> Path | None:
    """AP over the evaluations of a training; None if there are less than two."""
    if len(curve(entries, f"{task}/AP")[0]) < 2:
        return None
    figure, axes = new_figure(7.2, 2.9)
    for metric, colour in METRICS.items():
        iterations, values = curve(entries, f"{task}/{metric}")
        if iterations:
            width = 2 if metric == "AP" else 1.2
            style = {"marker": "o", "markersize": 3, "linewidth": width, "color": colour}
            axes.plot(iterations, values, label=metric, **style)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("iteration")
    axes.set_ylabel(f"{task} AP in %")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return save(figure, path)


def ap_by_count_figure(rows: Sequence[tuple[str, int, float]], task: str) -> Figure:
    """
    AP of every class against its training images, and the mean of each group.

    Args:
        rows: group, training images and AP of each class.
        task: for the axis.
    """
    figure = by_count_figure(rows, f"{task} AP of the class in %")
    highest = max((ap for _, _, ap in rows if not math.isnan(ap)), default=0.0)
    figure.axes[0].set_ylim(bottom=-0.03 * max(highest, 1.0))  # so that dots at 0 are whole
    return figure


def by_count_figure(
    rows: Sequence[tuple[str, int, float]], label: str, number: str = "{:.1f}"
) -> Figure:
    """
    A number of every class against its training images, and the mean of each group.

    Args:
        rows: group, training images and number of each class, nan where there is none.
        label: of the axis.
        number: format of the means in the legend.
    """
    figure, axes = new_figure(7.2, 3.2)
    for group, colour in GROUP_COLOURS.items():
        points = [(count, y) for of, count, y in rows if of == group and not math.isnan(y)]
        if points:
            _draw_group(axes, group, colour, number, *zip(*points))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("training images of the class")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return figure


def _draw_group(
    axes: Axes,
    group: str,
    colour: str,
    number: str,
    counts: Sequence[int],
    values: Sequence[float],
) -> None:
    x = [max(count, 0.7) for count in counts]  # 0 has no place on a logarithmic axis
    mean = sum(values) / len(values)
    label = f"{group}: mean {number.format(mean)}"
    axes.scatter(x, values, s=18, color=colour, alpha=0.8, label=label)
    axes.hlines(mean, min(x), max(x), color=colour, linewidth=1.2, linestyle="--")


def _terms(entries: Entries) -> list[str]:
    """Names of the terms of the loss, the largest first."""
    names = {name for e in entries for name in e if name.startswith("loss_") and "/" not in name}
    areas = {name: sum(curve(entries, name)[1]) for name in names}
    return sorted(names, key=lambda name: (-areas[name], name))


def _most(values: Sequence[float]) -> float:
    """Where the axis ends: the first steps of a training may be far above all others."""
    if not values:
        return 1.0
    later = sorted(values)[: max(1, math.ceil(0.98 * len(values)))]
    return 1.1 * max(later[-1], 1e-6)
