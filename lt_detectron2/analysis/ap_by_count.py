"""
AP of every class against the number of its training images, for a baseline and a method.

    python -m lt_detectron2.analysis.ap_by_count output/softmax output/eqlv2 --output ap.png

A line for each class leads from its AP under the baseline (grey) to its AP under the method
(coloured), as in FBS-AEGL (https://doi.org/10.1007/978-981-97-2092-7_10, Figure 5). Behind the
names are the means over the classes of each group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from ..errors import UserError
from .program import add_runs, draw_and_exit, figure_parser, labels_of
from .results import CategoryResult, read_categories
from .style import BASELINE_COLOUR, GROUP_COLOURS, new_figure, save, tidy

SPREAD = 0.06
"""Classes of equal counts would hide each other, so each is moved by up to this share."""


def draw(
    baseline: str | Path,
    method: str | Path,
    labels: Sequence[str],
    path: str | Path,
    task: str = "bbox",
) -> Path:
    """
    Args:
        baseline: output folder of an evaluated run.
        method: another, of the same classes.
        labels: what to call them.
        path: of the PNG.
        task: "bbox" or "segm".

    Raises:
        UserError: a run has not been evaluated, or not for the task, they have different classes,
            or no run knows its training images.
    """
    before, after = read_categories(baseline, task), read_categories(method, task)
    if list(before) != list(after):
        raise UserError(
            f"{baseline} and {method} were evaluated on different classes ({len(before)} and "
            f"{len(after)}): draw runs of one data set over each other"
        )
    for run, results in ((baseline, before), (method, after)):
        if all(math.isnan(row.ap) for row in results.values()):
            raise UserError(
                f"expected the {task} AP of classes in {run}, there is none: evaluate it for {task}"
            )
    counted = next((run for run in (after, before) if _has_counts(run)), None)
    if counted is None:
        raise UserError(
            f"expected the training images of the classes in {method} or {baseline}, no evaluation "
            "knew them: evaluate again with the class_statistics.json of the training"
        )
    images = np.array([row.train_images for row in counted.values()])
    groups = [row.group for row in counted.values()]
    low, high = (np.array([row.ap for row in run.values()]) for run in (before, after))
    figure, axes = new_figure(7.2, 3.6)
    draw_changes(axes, images, groups, low, high, labels)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{'mask' if task == 'segm' else 'box'} AP of the class")
    columns = {
        "category_id": list(after),
        "class": [row.name for row in after.values()],
        "group": groups,
        "train_images": images,
        labels[0]: low,
        labels[1]: high,
    }
    return save(figure, path, columns)


def _has_counts(run: Mapping[int, CategoryResult]) -> bool:
    return any(row.train_images >= 0 for row in run.values())


def draw_changes(
    axes: Axes,
    images: np.ndarray,
    groups: Sequence[str],
    before: np.ndarray,
    after: np.ndarray,
    labels: Sequence[str],
    number: str = "{:.0f}",
) -> None:
    """
    A line for each of K classes between its values under two runs, over its training images.

    Args:
        axes: to draw on.
        images: (K,) training images; classes without any, or with an unknown number, are left out.
        groups: K names of frequency groups.
        before, after: (K,) values; classes without both are left out.
        labels: names of the runs.
        number: format of the means in the legend.
    """
    spread = np.random.default_rng(0).uniform(1 - SPREAD, 1 + SPREAD, len(images))
    known = ~np.isnan(before) & ~np.isnan(after) & (images > 0)
    for name, colour in GROUP_COLOURS.items():
        of_group = known & (np.array(groups) == name)
        if not of_group.any():
            continue
        x, low, high = (images * spread)[of_group], before[of_group], after[of_group]
        axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.6)
        axes.scatter(x, low, s=14, color=BASELINE_COLOUR, zorder=3)
        means = f"{number.format(low.mean())} → {number.format(high.mean())}"
        label = f"{labels[1]}, {name} ({means})"
        axes.scatter(x, high, s=20, color=colour, zorder=4, label=label)
    axes.scatter([], [], s=14, color=BASELINE_COLOUR, label=labels[0])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("training images of the class")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    tidy(axes)


def main() -> None:
    parser = figure_parser("ap_by_count", __doc__)
    add_runs(parser, nargs=2)
    parser.add_argument("--task", default="bbox", choices=["bbox", "segm"])
    arguments = parser.parse_args()
    draw_and_exit(
        lambda: draw(*arguments.runs, labels_of(arguments), arguments.output, arguments.task)
    )


if __name__ == "__main__":
    main()
