"""
AP of every class against the number of its training images, for a baseline and a method.

    python -m lt_detectron2.analysis.ap_by_count output/softmax output/eqlv2 --output ap.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .results import read_categories
from .style import BASELINE_COLOUR, GROUP_COLOURS, new_figure, save, tidy


def draw(
    baseline: str | Path, method: str | Path, labels: tuple[str, str], path: str | Path
) -> Path:
    """A line for each class from its AP under the baseline to its AP under the method."""
    before, after = read_categories(baseline), read_categories(method)
    figure, axes = new_figure(7.2, 3.6)
    generator = np.random.default_rng(0)
    for name, colour in GROUP_COLOURS.items():
        ids = [i for i, row in after.items() if row.group == name and not np.isnan(row.ap)]
        if not ids:
            continue
        # Classes with equal counts would hide each other.
        x = np.array([after[i].train_images for i in ids]) * generator.uniform(0.94, 1.06, len(ids))
        low, high = [before[i].ap for i in ids], [after[i].ap for i in ids]
        axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.6)
        axes.scatter(x, low, s=14, color=BASELINE_COLOUR, zorder=3)
        label = f"{labels[1]}, {name} ({np.mean(low):.0f} → {np.mean(high):.0f})"
        axes.scatter(x, high, s=20, color=colour, zorder=4, label=label)
    axes.scatter([], [], s=14, color=BASELINE_COLOUR, label=labels[0])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training images of the class")
    axes.set_ylabel("box AP of the class")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    tidy(axes)
    return save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("baseline", help="output folder of an evaluated run")
    parser.add_argument("method", help="output folder of another")
    parser.add_argument("--output", default="ap_by_count.png")
    arguments = parser.parse_args()
    labels = (Path(arguments.baseline).name, Path(arguments.method).name)
    print(draw(arguments.baseline, arguments.method, labels, arguments.output))


if __name__ == "__main__":
    main()
