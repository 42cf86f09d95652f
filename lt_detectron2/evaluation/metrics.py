"""Precision, recall and their averages as folds over matches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..progress import track
from . import kernels
from .groups import CategoryGroups
from .matching import Matches
from .protocol import Protocol


@dataclass(frozen=True)
class PrecisionRecall:
    """
    Curves of every category; nan where a category has no annotation in the area range.

    Args:
        protocol: the thresholds and ranges of the axes.
        precision: (T, R, K, A), the best precision at the recall or beyond.
        recall: (T, K, A), the recall of all detections together.
    """

    protocol: Protocol
    precision: np.ndarray
    recall: np.ndarray

    def average_precision(
        self,
        *,
        iou: float | None = None,
        area: str = "all",
        categories: np.ndarray | None = None,
    ) -> float:
        """
        Mean precision over recalls, categories and IoU thresholds, in [0, 1].

        Args:
            iou: one IoU threshold; by default all.
            area: name of an area range.
            categories: positions of, or a mask over, the categories; by default all.

        Returns:
            nan if none of the categories has annotations.
        """
        values = self.precision[..., self.protocol.area_index(area)]
        if iou is not None:
            values = values[[self.protocol.iou_index(iou)]]
        if categories is not None:
            values = values[:, :, categories]
        return mean(values)

    def average_recall(self, *, area: str = "all", categories: np.ndarray | None = None) -> float:
        """Mean recall over categories and IoU thresholds, in [0, 1], or nan."""
        values = self.recall[..., self.protocol.area_index(area)]
        if categories is not None:
            values = values[:, categories]
        return mean(values)

    def category_ap(self, *, iou: float | None = None, area: str = "all") -> np.ndarray:
        """(K,) average precision of each category, nan where it has no annotations."""
        values = self.precision[..., self.protocol.area_index(area)]
        if iou is not None:
            values = values[[self.protocol.iou_index(iou)]]
        return values.mean(axis=(0, 1))

    def category_ar(self, *, area: str = "all") -> np.ndarray:
        """(K,) average recall of each category, nan where it has no annotations."""
        return self.recall[..., self.protocol.area_index(area)].mean(axis=0)


def precision_recall(matches: Matches) -> PrecisionRecall:
    """Folds matches into curves."""
    recalls = np.array(matches.protocol.recall_thresholds)
    fold = kernels.curves if kernels.available() else _curves
    precision, recall = fold(
        matches.offsets,
        matches.errs_unmatched,
        matches.candidates,
        matches.matched,
        matches.right,
        matches.num_annotations,
        recalls,
    )
    return PrecisionRecall(protocol=matches.protocol, precision=precision, recall=recall)


def _curves(
    offsets: np.ndarray,
    errs_unmatched: np.ndarray,
    candidates: np.ndarray,
    matched: np.ndarray,
    right: np.ndarray,
    num_annotations: np.ndarray,
    recalls: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """
    As `kernels.curves`.

    Precision can only peak at a true positive, so its envelope is read there: true positives are
    binned by the highest recall threshold that they reach, and the envelope at a threshold is the
    best of its bin and all later ones.
    """
    num_categories, num_areas = num_annotations.shape
    num_thresholds, num_recalls = matched.shape[1], len(recalls)
    precision = np.full((num_thresholds, num_recalls, num_categories, num_areas), np.nan)
    recall = np.full((num_thresholds, num_categories, num_areas), np.nan)

    category = np.searchsorted(offsets, candidates, side="right") - 1  # (C,)
    first_candidate = np.searchsorted(candidates, offsets[:-1])  # (K,)
    for area in track(range(num_areas), "precision and recall", unit="area range"):
        number = num_annotations[:, area]
        present = number > 0
        errs = errs_unmatched[:, area]
        # Rows before each row that would be errors if none was matched, within the category.
        errs_before = _running_total(errs)
        errs_before = errs_before[candidates] - errs_before[offsets[category]]
        candidate_errs = errs[candidates]
        # By threshold, for what is next to each other in memory is read faster.
        area_matched = np.ascontiguousarray(matched[:, :, area].T)
        area_right = np.ascontiguousarray(right[:, :, area].T)
        for threshold in range(num_thresholds):
            spared = _running_total(area_matched[threshold] & candidate_errs)
            rank = _running_total(area_right[threshold])
            hits = np.flatnonzero(area_right[threshold] & present[category])
            of = category[hits]
            true = rank[hits + 1] - rank[first_candidate[of]]
            false = errs_before[hits] - (spared[hits] - spared[first_candidate[of]])
            num_true = np.bincount(of, minlength=num_categories)
            recall[threshold, present, area] = num_true[present] / number[present]
            reached = np.searchsorted(recalls, true / number[of], side="right") - 1
            values = true / (false + true + kernels.EPSILON)
            envelope = _envelope(of * num_recalls + reached, values, num_categories, num_recalls)
            precision[threshold, :, present, area] = envelope[present]
    return precision, recall


def summarize(curves: PrecisionRecall, *partitions: CategoryGroups | None) -> dict[str, float]:
    """
    The numbers of the LVIS challenge in [0, 1], nan where there are no annotations.

    Args:
        partitions: groups to average over; None is skipped.

    Returns:
        AP, AP50, AP75, APs, APm, APl; AP of each group, such as APr, APc, APf or AP_1 to AP_4, and
        for instance bins their unweighted mean bAP; AR, ARs, ARm, ARl.
    """
    numbers = {
        "AP": curves.average_precision(),
        "AP50": curves.average_precision(iou=0.5),
        "AP75": curves.average_precision(iou=0.75),
    }
    sizes = ("small", "medium", "large")
    for size in sizes:
        numbers[f"AP{size[0]}"] = curves.average_precision(area=size)
    numbers |= group_means(curves.category_ap(), partitions)
    numbers["AR"] = curves.average_recall()
    for size in sizes:
        numbers[f"AR{size[0]}"] = curves.average_recall(area=size)
    return numbers


def group_means(
    category_ap: np.ndarray, partitions: Sequence[CategoryGroups | None]
) -> dict[str, float]:
    """Mean over the categories of each group that have annotations, by name such as APr."""
    numbers = {}
    for groups in partitions:
        if groups is None:
            continue
        means = {f"AP{name}": mean(category_ap[groups.members(name)]) for name in groups.names}
        numbers |= means
        if groups.names[0] == "_1":
            numbers["bAP"] = mean(np.array(list(means.values())))
    return numbers


def recall_of_best(matches: Matches, per_cell: int) -> float:
    """Mean recall of the best detections of each category and image, COCO's AR@1 and AR@10."""
    best = matches.best_of_each_cell(per_cell)
    category = np.searchsorted(best.offsets, best.candidates, side="right") - 1
    num_true = np.zeros((len(best.num_annotations), best.right.shape[1]), dtype=np.int64)
    np.add.at(num_true, category, best.right[:, :, 0])
    present = best.num_annotations[:, 0] > 0
    return mean(num_true[present] / best.num_annotations[present, :1])


def pooled_precision(matches: Matches, *partitions: CategoryGroups | None) -> dict[str, float]:
    """
    AP-pool in [0, 1]: one curve over all categories (https://arxiv.org/abs/2102.01066).

    Returns:
        APpool, and APpoolr and so on for each group.
    """
    pools = {"APpool": np.arange(len(matches.num_annotations))}
    for groups in partitions:
        if groups is not None:
            pools |= {f"APpool{name}": groups.members(name) for name in groups.names}
    whole = replace(matches.protocol, area_ranges=matches.protocol.area_ranges[:1])
    matches = replace(
        matches,
        protocol=whole,
        errs_unmatched=matches.errs_unmatched[:, :1],
        matched=matches.matched[:, :, :1],
        right=matches.right[:, :, :1],
        num_annotations=matches.num_annotations[:, :1],
    )
    return {
        name: precision_recall(matches.pooled(members)).average_precision()
        for name, members in pools.items()
    }


def _running_total(flags: np.ndarray) -> np.ndarray:
    """(C + 1,), flags before each position."""
    return np.concatenate([[0], np.cumsum(flags)])


def _envelope(bins: np.ndarray, values: np.ndarray, num_categories: int, num_recalls: int):
    """(K, R), the best value of each bin and all later ones of its category; `bins` ascend."""
    best = np.zeros(num_categories * num_recalls)
    if len(bins):
        begins = np.flatnonzero(np.diff(bins, prepend=-1))
        best[bins[begins]] = np.maximum.reduceat(values, begins)
    best = best.reshape(num_categories, num_recalls)
    return np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]


def mean(values: np.ndarray) -> float:
    """Mean of what is not nan, or nan."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
