"""
How many training images every class has, by frequency group, for one data set or several.

    python -m lt_detectron2.analysis.class_histogram synthlt_demo_train
    python -m lt_detectron2.analysis.class_histogram lvis_v1_train openimages_challenge2019_train
    python -m lt_detectron2.analysis.class_histogram output/model_final.pth

A panel for each, the most frequent class first, on the same logarithmic axis (as in FBS-AEGL,
https://doi.org/10.1007/978-981-97-2092-7_10, Figure 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from ..statistics import GROUP_NAMES, MAX_COMMON_IMAGES, MAX_RARE_IMAGES, ClassStatistics
from .class_summary import imbalance_factor
from .classes import SOURCE_HELP, by_frequency, class_columns, read_counts
from .program import draw_and_exit, figure_parser
from .style import GROUP_COLOURS, new_figure, save, tidy, verbatim

MAX_NAMES = 30
"""Classes up to which the name of each is written below its bar."""


def draw(statistics: ClassStatistics, path: str | Path, title: str = "") -> Path:
    """The histogram of one training set."""
    return draw_several([statistics], path, [title])


def draw_several(sets: Sequence[ClassStatistics], path: str | Path, titles: Sequence[str]) -> Path:
    """Bars of image counts, most frequent class first, with a panel for each training set."""
    figure, grid = new_figure(7.2, 0.3 + 2.5 * len(sets), nrows=len(sets), sharey=True)
    columns: dict[str, list] = {}
    for axes, statistics, title in zip(np.atleast_1d(grid), sets, titles):
        _draw_panel(axes, statistics)
        axes.set_title(title, fontsize=10)
        rows = class_columns(statistics, by_frequency(statistics))
        if len(sets) > 1:
            rows = {"set": [title] * statistics.num_classes, **rows}
        columns = {name: [*columns.get(name, ()), *rows[name]] for name in rows}
    largest = max(int(statistics.image_count.max()) for statistics in sets)
    axes.set_ylim(0.7, 1.5 * max(largest, MAX_COMMON_IMAGES))  # shared
    return save(figure, path, columns)


def _draw_panel(axes: Axes, statistics: ClassStatistics) -> None:
    counts, order = statistics.image_count.sort(descending=True, stable=True)
    groups = statistics.frequency_group()[order]
    width = 0.85 if len(order) < 200 else 1.0
    for index, name in reversed(list(enumerate(GROUP_NAMES))):
        ranks = (groups == index).nonzero().flatten().numpy()
        if len(ranks):
            style = {"width": width, "color": GROUP_COLOURS[name]}
            axes.bar(ranks, counts.numpy()[ranks], label=f"{len(ranks)} {name}", **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    for edge in (MAX_RARE_IMAGES, MAX_COMMON_IMAGES):
        axes.axhline(edge, color="black", linewidth=0.6, linestyle=":")
    if statistics.class_names and len(order) <= MAX_NAMES:
        names = [verbatim(statistics.class_names[c]) for c in order.tolist()]
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    else:
        axes.set_xlabel("class, by frequency")
    axes.set_ylabel("training images")
    heading = f"imbalance {imbalance_factor(statistics):,.0f} : 1"
    legend = axes.legend(fontsize=8, title=heading, title_fontsize=8, framealpha=1)
    legend.get_frame().set_edgecolor("none")
    tidy(axes)


def main() -> None:
    parser = figure_parser("class_histogram", __doc__)
    parser.add_argument("sets", nargs="+", help=SOURCE_HELP)
    arguments = parser.parse_args()

    def work() -> Path:
        sets = [read_counts(source) for source in arguments.sets]
        return draw_several(sets, arguments.output, arguments.sets)

    draw_and_exit(work)


if __name__ == "__main__":
    main()
