"""
What a detector takes each class for: which head class eats which tail class.

    python -m lt_detectron2.analysis.confusion output/softmax

Every annotated object is called by the best detection on it, of whatever class; a detection is on
the object that it overlaps most. An object without a detection of enough overlap is missed. Scores
of different methods are not on one scale, but which is best means the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..evaluation import Detections, GroundTruth
from ..evaluation.annotations import positions_in
from ..evaluation.report import ABSENT
from .boxes import pairwise_iou
from .program import add_runs, draw_and_exit, figure_parser, labels_of
from .results import CategoryResult, read_categories, read_detections, read_ground_truth
from .style import BASELINE_COLOUR, GROUP_COLOURS, new_figure, save, verbatim

IOU_THRESHOLD = 0.5
TAIL_GROUPS = ("rare", "common")
RIGHT_COLOUR, MISSED_COLOUR = "#f0e442", "#e6e6e6"


@dataclass(frozen=True)
class Confusion:
    """
    Attributes:
        category_ids: (K,) ids of the annotation file, ascending.
        names: K names.
        counts: (K, K + 1) objects of each class by the class they are taken for; the last column
            holds the missed ones.
    """

    category_ids: np.ndarray
    names: tuple[str, ...]
    counts: np.ndarray

    @property
    def num_objects(self) -> np.ndarray:
        """(K,) annotated objects of each class."""
        return self.counts.sum(axis=1)

    @property
    def eaten(self) -> np.ndarray:
        """(K, K) objects of each class by the other class that they are taken for."""
        counts = self.counts[:, :-1].copy()
        np.fill_diagonal(counts, 0)
        return counts


@dataclass(frozen=True)
class TopConfusion:
    """
    A class and what its objects are taken for, all in shares of its objects.

    Attributes:
        category: the class.
        num_objects: annotated.
        right, missed: called by its name, not found.
        by_group: taken for other classes of each frequency group.
        eaters: the other classes that most are taken for, with their shares, the greatest first.
    """

    category: CategoryResult
    num_objects: int
    right: float
    missed: float
    by_group: Mapping[str, float]
    eaters: tuple[tuple[CategoryResult, float], ...]


def confuse(
    ground_truth: GroundTruth, detections: Detections, iou_threshold: float = IOU_THRESHOLD
) -> Confusion:
    """
    Count what the objects of each class are taken for.

    Ignored annotations (crowds) are not counted. Detections of classes that nobody verified in an
    image count like others, if they were kept (LONG_TAIL.EVAL.KEEP_UNVERIFIED): leaving them out
    would hide most confusions in a set that is annotated like LVIS.

    Args:
        ground_truth: the objects.
        detections: of the same images.
        iou_threshold: overlap from which a detection is on an object.
    """
    return confuse_in_parts(ground_truth, [detections], iou_threshold)


def confuse_in_parts(
    ground_truth: GroundTruth, parts: Iterable[Detections], iou_threshold: float = IOU_THRESHOLD
) -> Confusion:
    """:func:`confuse` of detections that come bit by bit, those of an image together."""
    counts = np.zeros((ground_truth.num_categories, ground_truth.num_categories + 1), np.int64)
    called = np.full(len(ground_truth.boxes), ground_truth.num_categories)
    for part in parts:
        _call(called, ground_truth, part, iou_threshold)
    counted = ~ground_truth.ignored
    np.add.at(counts, (ground_truth.category[counted], called[counted]), 1)
    return Confusion(ground_truth.category_ids, ground_truth.category_names, counts)


def _call(
    called: np.ndarray, ground_truth: GroundTruth, detections: Detections, iou_threshold: float
) -> None:
    """Enter in `called` (G,) the category that each object with a detection on it is called."""
    image, known_image = positions_in(ground_truth.image_ids, detections.image_ids)
    category, known = positions_in(ground_truth.category_ids, detections.category_ids)
    # By image, and of each the best first: the first one on an object calls it.
    rows = np.flatnonzero(known & known_image)
    rows = rows[np.lexsort((-detections.scores[rows], image[rows]))]
    images, starts = np.unique(image[rows], return_index=True)
    first_object = np.searchsorted(ground_truth.image, images)
    end = np.searchsorted(ground_truth.image, images, side="right")
    for found, low, high in zip(np.split(rows, starts[1:]), first_object, end):
        if low == high:
            continue
        ious = pairwise_iou(detections.boxes[found], ground_truth.boxes[low:high])
        on = np.where(ious.max(axis=1) >= iou_threshold, ious.argmax(axis=1), -1)
        taken, first = np.unique(on, return_index=True)
        is_object = taken >= 0
        called[low + taken[is_object]] = category[found[first[is_object]]]


def confusion_of_run(
    run: str | Path, dataset: str = "", iou_threshold: float = IOU_THRESHOLD
) -> Confusion:
    """:func:`confuse` of a run's saved detections and the set that it was evaluated on."""
    return confuse(read_ground_truth(run, dataset), read_detections(run), iou_threshold)


def top_confusions(
    confusion: Confusion,
    categories: Mapping[int, CategoryResult],
    count: int = 15,
    groups: Sequence[str] = TAIL_GROUPS,
    num_eaters: int = 3,
) -> list[TopConfusion]:
    """
    The classes of which other classes eat the greatest share.

    Args:
        confusion: of a run.
        categories: by category id, see :func:`~lt_detectron2.analysis.results.read_categories`.
        count: how many classes.
        groups: frequency groups to choose from; all classes where none has objects.
        num_eaters: other classes to name for each.
    """
    results = _categories_of(confusion, categories)
    annotated = np.flatnonzero(confusion.num_objects)
    chosen = [c for c in annotated if results[c].group in groups] or list(annotated)
    shares = confusion.eaten.sum(axis=1) / np.maximum(confusion.num_objects, 1)
    chosen.sort(key=lambda c: (-shares[c], -confusion.num_objects[c]))
    return [_top_confusion(confusion, results, c, num_eaters) for c in chosen[:count]]


def _top_confusion(
    confusion: Confusion, results: Sequence[CategoryResult], c: int, num_eaters: int
) -> TopConfusion:
    num_objects = int(confusion.num_objects[c])
    shares = confusion.counts[c] / num_objects
    others = [o for o in np.argsort(-shares[:-1], kind="stable") if o != c and shares[o] > 0]
    by_group = dict.fromkeys([*GROUP_COLOURS, ""], 0.0)
    for other in others:
        by_group[results[other].group] += shares[other]
    eaters = tuple((results[other], float(shares[other])) for other in others[:num_eaters])
    return TopConfusion(results[c], num_objects, shares[c], shares[-1], by_group, eaters)


def markdown_table(rows: Sequence[TopConfusion]) -> str:
    """Markdown: a row for each class, shares in percent."""
    lines = ["| class | objects | right | missed | taken for |", "|---|--:|--:|--:|---|"]
    for row in rows:
        eaters = ", ".join(f"{_titled(eater)} {100 * share:.0f} %" for eater, share in row.eaters)
        cells = [
            _titled(row.category),
            str(row.num_objects),
            f"{100 * row.right:.0f} %",
            f"{100 * row.missed:.0f} %",
            eaters or "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(
    confusion: Confusion,
    categories: Mapping[int, CategoryResult],
    path: str | Path,
    title: str = "",
    count: int = 15,
) -> Path:
    """:func:`confusion_figure`; the CSV holds the counts."""
    figure = confusion_figure(confusion, categories, title, count)
    return save(figure, path, _csv_columns(confusion, _categories_of(confusion, categories)))


def confusion_figure(
    confusion: Confusion,
    categories: Mapping[int, CategoryResult],
    title: str = "",
    count: int = 15,
) -> Figure:
    """The matrix of all classes by frequency, and what the tail is taken for."""
    results = _categories_of(confusion, categories)
    groups = ["", *GROUP_COLOURS]
    ranks = [-groups.index(row.group) for row in results]
    # Images alone would tear groups apart where they are not known.
    order = np.lexsort(([-row.train_images for row in results], ranks))
    top = top_confusions(confusion, categories, count)
    figure, (left, right) = new_figure(
        11, max(4.6, 0.26 * len(top) + 1.6), ncols=2, width_ratios=(1, 1.15)
    )
    figure.suptitle(title, fontsize=10)
    _draw_matrix(left, confusion, results, order)
    _draw_tail(right, top)
    return figure


def _draw_matrix(
    axes: Axes, confusion: Confusion, results: Sequence[CategoryResult], order: np.ndarray
) -> None:
    shares = confusion.counts / np.maximum(confusion.num_objects, 1)[:, None]
    ordered = shares[order][:, [*order, len(order)]]
    mesh = axes.imshow(ordered, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    groups = [results[c].group for c in order]
    edges = [i - 0.5 for i in range(1, len(groups)) if groups[i] != groups[i - 1]]
    for edge in edges:
        axes.axhline(edge, color="black", linewidth=0.5, linestyle=":")
        axes.axvline(edge, color="black", linewidth=0.5, linestyle=":")
    axes.axvline(len(order) - 0.5, color="black", linewidth=0.8)
    bounds = [-0.5, *edges, len(groups) - 0.5]
    middles = [(low + high) / 2 for low, high in zip(bounds, bounds[1:])]
    names = [groups[int(middle)] for middle in middles]
    axes.set_xticks([*middles, len(order)], [*names, "missed"], fontsize=8)
    axes.set_yticks(middles, names, fontsize=8, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.get_xticklabels()[-1].set_ha("left")
    axes.set_xlabel("taken for", fontsize=9)
    axes.set_ylabel("annotated class, frequent ones first", fontsize=9)
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.5, aspect=30, pad=0.02)
    bar.set_label("share of the class's objects", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)


def _draw_tail(axes: Axes, rows: Sequence[TopConfusion]) -> None:
    """Bars of shares: right, taken for the classes that take most, for others, missed."""
    for position, row in enumerate(rows):
        named = [(share, GROUP_COLOURS.get(c.group, "black"), c.name) for c, share in row.eaters]
        rest = sum(row.by_group.values()) - sum(share for share, _, _ in named)
        parts = [(row.right, RIGHT_COLOUR, ""), *named, (rest, BASELINE_COLOUR, "")]
        left = 0.0
        for share, colour, name in [*parts, (row.missed, MISSED_COLOUR, "")]:
            style = {"height": 0.82, "color": colour, "edgecolor": "white", "linewidth": 0.8}
            axes.barh(position, share, left=left, **style)
            text = f"{_label(name)} {100 * share:.0f} %"
            if name and share > 0.014 * len(text) + 0.02:  # else it does not fit
                label = {"ha": "center", "va": "center", "fontsize": 6.5, "color": "white"}
                axes.text(left + share / 2, position, text, **label)
            left += share
    axes.set_yticks(range(len(rows)), [_label(_titled(row.category)) for row in rows], fontsize=7.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_xlabel("share of the class's objects", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7.5)
    keys = {"right": RIGHT_COLOUR}
    keys |= {f"taken for a {group} class": GROUP_COLOURS[group] for group in GROUP_COLOURS}
    keys |= {"for others": BASELINE_COLOUR, "missed": MISSED_COLOUR}
    handles = [Patch(color=colour, label=label) for label, colour in keys.items()]
    axes.legend(
        handles=handles,
        frameon=False,
        fontsize=7.5,
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.45, 1.0),
    )


def _categories_of(
    confusion: Confusion, categories: Mapping[int, CategoryResult]
) -> list[CategoryResult]:
    return [
        categories.get(id, CategoryResult(name, "", -1, np.nan))
        for id, name in zip(confusion.category_ids.tolist(), confusion.names)
    ]


def _csv_columns(confusion: Confusion, results: Sequence[CategoryResult]) -> dict[str, list]:
    """A row for each class and each that any object of it is taken for."""
    annotated, called = confusion.counts.nonzero()
    images = [row.train_images for row in results]
    takers = [*results, CategoryResult("missed", "", -1, np.nan)]
    return {
        "category_id": confusion.category_ids[annotated].tolist(),
        "class": [results[c].name for c in annotated],
        "group": [results[c].group for c in annotated],
        "train_images": [ABSENT if images[c] < 0 else images[c] for c in annotated],
        "taken_for": [takers[c].name for c in called],
        "taken_for_group": [takers[c].group for c in called],
        "objects": confusion.counts[annotated, called].tolist(),
    }


def _titled(category: CategoryResult) -> str:
    return category.name + (f" [{category.group[0]}]" if category.group else "")


def _label(name: str) -> str:
    return verbatim(name.replace("_", " "))


def main() -> None:
    parser = figure_parser("confusion", __doc__)
    add_runs(parser, nargs=1)
    parser.add_argument("--dataset", default="", help="by default the one of the evaluation")
    parser.add_argument("--iou", type=float, default=IOU_THRESHOLD, help="that finds an object")
    parser.add_argument("--classes", type=int, default=15, help="of the tail to show")
    arguments = parser.parse_args()

    def work() -> Path:
        (label,) = labels_of(arguments)
        (run,) = arguments.runs
        confusion = confusion_of_run(run, arguments.dataset, arguments.iou)
        categories = read_categories(run)
        print(markdown_table(top_confusions(confusion, categories, arguments.classes)))
        return draw(confusion, categories, arguments.output, label, arguments.classes)

    draw_and_exit(work)


if __name__ == "__main__":
    main()
