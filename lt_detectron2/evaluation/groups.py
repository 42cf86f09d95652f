"""Which categories belong together in an average, and who says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from .ground_truth import GroundTruth

if TYPE_CHECKING:
    from ..statistics import ClassStatistics

FREQUENCY_GROUPS = ("r", "c", "f")
LVIS_EDGES = (10, 100)
"""Images up to which a category is rare, and common."""

FROM_TRAINING = "the training set's statistics"


@dataclass(frozen=True)
class CategoryGroups:
    """
    A partition of the categories, for averages such as APr.

    Args:
        names: short names, appended to the metric's.
        index: (K,) int64, position in `names`; -1 for categories of no group.
        source: where the partition comes from, for the report.
        rule: what puts a category into its group, for the report.
    """

    names: tuple[str, ...]
    index: np.ndarray
    source: str
    rule: str = ""

    def members(self, name: str) -> np.ndarray:
        """Positions of the categories of a group."""
        return np.flatnonzero(self.index == self.names.index(name))

    def labels(self) -> list[str]:
        """K names; "" for categories of no group."""
        return [self.names[group] if group >= 0 else "" for group in self.index.tolist()]

    def describe(self, counted: np.ndarray) -> str:
        """One line for reports; `counted` (K,) bool says which categories have annotations."""
        sizes = ", ".join(
            f"{name} {np.count_nonzero(counted[self.members(name)])} of {len(self.members(name))}"
            for name in self.names
        )
        return f"{sizes}; groups from {self.source}" + (f": {self.rule}" if self.rule else "")


def groups_from_frequency(ground_truth: GroundTruth) -> CategoryGroups:
    """Groups by the letter that an LVIS file gives each category; no group where it gives none."""
    letters = ground_truth.category_frequency
    index = [FREQUENCY_GROUPS.index(f) if f in FREQUENCY_GROUPS else -1 for f in letters]
    known = sum(group >= 0 for group in index)
    source = "the evaluation file's 'frequency'" if known else "nowhere: no group is known"
    return CategoryGroups(FREQUENCY_GROUPS, np.array(index, dtype=np.int64), source)


def groups_from_statistics(
    ground_truth: GroundTruth,
    statistics: "ClassStatistics",
    class_of_category: Mapping[int, int],
    *,
    thirds: bool = False,
) -> CategoryGroups:
    """
    Rare, common and frequent by the images of each class in the training set.

    Args:
        statistics: counts of the training set.
        class_of_category: contiguous class of each category id.
        thirds: where every class has more than 100 images, so that LVIS would call them all
            frequent, split the classes into three groups of about equal size instead.

    Raises:
        UserError: the training set has another number of classes.
    """
    counts = np.asarray(statistics.image_count)
    edges = LVIS_EDGES
    rule = ""
    if thirds and len(counts) >= 3 and counts.min() > LVIS_EDGES[-1]:
        ascending = np.sort(counts)
        edges = tuple(int(ascending[-(-len(counts) * part // 3) - 1]) for part in (1, 2))
        rule = (
            f"thirds of the classes, r up to {edges[0]:,} training images, c up to {edges[1]:,} "
            f"(none has {LVIS_EDGES[-1]} or fewer)"
        )
    per_class = np.searchsorted(edges, counts, side="left")
    index = per_category(per_class, ground_truth, class_of_category)
    return CategoryGroups(FREQUENCY_GROUPS, index, FROM_TRAINING, rule)


def instance_bins(
    ground_truth: GroundTruth,
    statistics: "ClassStatistics",
    class_of_category: Mapping[int, int],
    edges: Sequence[int] = (10, 100, 1000),
) -> CategoryGroups:
    """
    Bins _1, _2, ... by the objects of each class in the training set, half-open [low, high).

    The default edges give AP_1 to AP_4 of BAGS (https://arxiv.org/abs/2006.10408). The last bin has
    no upper end.

    Raises:
        UserError: the training set has another number of classes.
    """
    per_class = np.asarray(statistics.instance_bins(edges))
    index = per_category(per_class, ground_truth, class_of_category)
    names = tuple(f"_{number}" for number in range(1, len(edges) + 2))
    bounds = ", ".join(f"{edge:,}" for edge in edges)
    return CategoryGroups(names, index, FROM_TRAINING, f"bins of training objects from {bounds}")


def training_groups(
    ground_truth: GroundTruth,
    statistics: "ClassStatistics",
    class_of_category: Mapping[int, int],
    edges: Sequence[int],
    *,
    thirds: bool = False,
) -> tuple[CategoryGroups, ...]:
    """`groups_from_statistics`, and `instance_bins` if there are edges; errors are theirs."""
    counts = ground_truth, statistics, class_of_category
    groups = groups_from_statistics(*counts, thirds=thirds)
    return (groups, instance_bins(*counts, edges)) if edges else (groups,)


def training_counts(
    ground_truth: GroundTruth, statistics: "ClassStatistics", class_of_category: Mapping[int, int]
) -> dict[str, np.ndarray]:
    """(K,) `train_images` and (K,) `train_instances`, see `per_category`."""
    counts = {"images": statistics.image_count, "instances": statistics.instance_count}
    return {
        f"train_{name}": per_category(np.asarray(of), ground_truth, class_of_category)
        for name, of in counts.items()
    }


def per_category(
    per_class: np.ndarray, ground_truth: GroundTruth, class_of_category: Mapping[int, int]
) -> np.ndarray:
    """
    (K,) int64, what is known of each category's class; -1 for categories without one.

    Raises:
        UserError: it is known of another number of classes.
    """
    if len(per_class) != len(class_of_category):
        raise UserError(
            f"expected training statistics of the {len(class_of_category)} classes of the "
            f"evaluation set, got them for {len(per_class)}: evaluate on a set with the classes of "
            "training"
        )
    ids = ground_truth.category_ids.tolist()
    classes = [class_of_category.get(id, -1) for id in ids]
    return np.array([per_class[c] if c >= 0 else -1 for c in classes], dtype=np.int64)


def check_class_names(trained: Sequence[str] | None, evaluated: Sequence[str] | None) -> None:
    """
    Compares the classes of the checkpoint with those of the evaluation set, where both have names.

    Raises:
        UserError: they differ: every number would be that of another class.
    """
    difference = class_difference(trained, evaluated)
    if difference:
        raise UserError(
            "expected a model of the classes of the evaluation set, the training set had others: "
            f"{difference}. Evaluate on a set with the classes of training, in their order"
        )


def class_difference(trained: Sequence[str] | None, evaluated: Sequence[str] | None) -> str:
    """The first difference between two lists of classes; "" where one of them has no names."""
    if not trained or not evaluated or list(trained) == list(evaluated):
        return ""
    if len(trained) != len(evaluated):
        return f"{len(trained)} classes instead of {len(evaluated)}"
    others = [c for c, (a, b) in enumerate(zip(trained, evaluated)) if a != b]
    first = others[0]
    return (
        f"class {first} is {trained[first]!r} there and {evaluated[first]!r} here "
        f"({len(others):,} of {len(trained):,} differ)"
    )
