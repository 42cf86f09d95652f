"""
Where the negative gradient of every class comes from: regions of other classes, or background.

    python -m lt_detectron2.analysis.negative_share output/softmax output/eqlv2

The runs have been trained with LONG_TAIL.GRADIENT_PERIOD 100 or so, with any loss. The most
frequent class comes first, as in FBS-AEGL (https://doi.org/10.1007/978-981-97-2092-7_10, Figure 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .classes import by_frequency, class_columns, groups_of
from .program import draw_and_exit
from .recorded_gradients import RecordedRun, check_same_classes, drawing_of_arguments
from .style import mark_groups, new_figure, save

FOREGROUND_COLOUR, BACKGROUND_COLOUR = "#e69f00", "#56b4e9"


def draw(runs: Sequence[RecordedRun], path: str | Path) -> Path:
    """
    The figure; its CSV holds the share of the foreground, the rest is the background's.

    Raises:
        UserError: the runs have different training sets.
    """
    statistics = check_same_classes(runs)
    order = by_frequency(statistics)
    columns = class_columns(statistics, order)
    for run in runs:
        columns[run.label] = run.record.foreground_share()[-1][order].tolist()
    return save(share_figure(runs), path, columns)


def share_figure(runs: Sequence[RecordedRun]) -> Figure:
    """A panel for each run with a bar for each class."""
    figure, grid = new_figure(7.2, 0.7 + 2.0 * len(runs), nrows=len(runs), sharex=True)
    panels = np.atleast_1d(grid)
    for axes, run in zip(panels, runs):
        order = by_frequency(run.statistics)
        groups = groups_of(run.statistics)
        foreground = run.record.foreground_share()[-1][order]
        ranks = np.arange(len(order))
        style = {"width": 0.9 if len(order) < 200 else 1.0}
        axes.bar(
            ranks, foreground, color=FOREGROUND_COLOUR, label="regions of other classes", **style
        )
        axes.bar(
            ranks,
            1 - foreground,
            bottom=foreground,
            color=BACKGROUND_COLOUR,
            label="background",
            **style,
        )
        mark_groups(axes, [groups[c] for c in order])
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        axes.set_title(run.label, fontsize=10, pad=16)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("class, most frequent first")
    figure.supylabel("share of the negative gradient", fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=8,
        ncols=2,
        loc="outside upper right",
    )
    return figure


def main() -> None:
    draw_and_exit(drawing_of_arguments("negative_share", __doc__, draw))


if __name__ == "__main__":
    main()
