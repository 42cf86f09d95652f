"""
How much positive gradient every class has received for its negative gradient.

    python -m lt_detectron2.analysis.gradient_ratio output/softmax output/eqlv2

The runs have been trained with LONG_TAIL.GRADIENT_PERIOD 100 or so, with any loss. First comes the
ratio at the end of training by class, the most frequent first, then its course in each run: the
median of each frequency group, and between which values half of its classes lie. What is summed are
absolute derivatives of the loss by the logits of a class, over regions of the class (positive) and
over all others (negative), as in EQL v2 (https://arxiv.org/abs/2012.08548, Figures 1 and 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .classes import by_frequency, class_columns, groups_of
from .program import draw_and_exit
from .recorded_gradients import RecordedRun, check_same_classes, drawing_of_arguments
from .style import GROUP_COLOURS, RUN_COLOURS, mark_groups, new_figure, save, tidy, write_csv

QUARTILES = (25, 50, 75)


def draw(runs: Sequence[RecordedRun], path: str | Path) -> Path:
    """
    The figure; beside it a CSV by class, and ``<name>_over_training.csv`` by group and snapshot.

    Raises:
        UserError: the runs have different training sets.
    """
    statistics = check_same_classes(runs)
    order = by_frequency(statistics)
    columns = class_columns(statistics, order)
    for run in runs:
        columns[run.label] = run.record.ratio()[-1][order].tolist()
    path = save(ratio_figure(runs), path, columns)
    rows = [(run.label, *row) for run in runs for row in course(run)]
    names = ("run", "iteration", "group", "lower_quartile", "median", "upper_quartile")
    write_csv(
        path.with_name(f"{path.stem}_over_training.csv"), dict(zip(names, zip(*rows), strict=True))
    )
    return path


def course(run: RecordedRun) -> Iterator[tuple[int, str, float, float, float]]:
    """Iteration, group and quartiles of the ratios of its classes, of each snapshot and group."""
    groups = np.array(groups_of(run.statistics))
    for iteration, ratios in zip(run.record.iterations.tolist(), run.record.ratio()):
        for group in GROUP_COLOURS:
            known = ratios[(groups == group) & ~np.isnan(ratios)]
            if len(known):
                yield iteration, group, *np.percentile(known, QUARTILES).tolist()


def ratio_figure(runs: Sequence[RecordedRun]) -> Figure:
    """Ratios by class at the end, and a panel with the course of each run."""
    figure, axes = new_figure(4.6 + 3.1 * len(runs), 3.5, ncols=1 + len(runs), sharey=True)
    width = 1.5 / (1.5 + len(runs))
    axes[0].get_gridspec().set_width_ratios([width, *[(1 - width) / len(runs)] * len(runs)])
    _draw_by_class(axes[0], runs)
    for panel, run in zip(axes[1:], runs):
        _draw_course(panel, run)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("positive / negative gradient")
    return figure


def _draw_by_class(axes: Axes, runs: Sequence[RecordedRun]) -> None:
    order = by_frequency(runs[0].statistics)
    groups = groups_of(runs[0].statistics)
    for run, colour in zip(runs, _colours(len(runs))):
        style = {"color": colour, "label": run.label, "markersize": 3.5, "linewidth": 0.8}
        axes.plot(run.record.ratio()[-1][order], marker="o", **style)
    mark_groups(axes, [groups[c] for c in order])
    axes.axhline(1, color="black", linewidth=0.7)
    axes.set_xlabel("class, most frequent first")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)


def _draw_course(axes: Axes, run: RecordedRun) -> None:
    rows = list(course(run))
    for group, colour in GROUP_COLOURS.items():
        of_group = [(row[0], *row[2:]) for row in rows if row[1] == group]
        if of_group:
            iterations, lower, median, upper = zip(*of_group)
            seen = np.array(lower) > 0  # by all but a quarter of the classes at the most
            style = {"color": colour, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(iterations, lower, upper, where=seen, **style)
            started = np.where(np.array(median) > 0, median, np.nan)  # a positive has been seen
            axes.plot(iterations, started, color=colour, label=group)
    axes.axhline(1, color="black", linewidth=0.7)
    axes.set_title(run.label, fontsize=10)
    axes.set_xlabel("iteration")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)


def _colours(count: int) -> list[str]:
    return [RUN_COLOURS[i % len(RUN_COLOURS)] for i in range(count)]


def main() -> None:
    draw_and_exit(drawing_of_arguments("gradient_ratio", __doc__, draw))


if __name__ == "__main__":
    main()
