"""
How far metrics would move with another sample of images.

A bootstrap sample of I images is an integer weight for each of them, so precision and recall are
sums of weights over stored match bits: nothing is matched again.

The average precision of a sample is biased: a category with few images gets luckier curves when
images repeat, and on LVIS nearly all samples lie above the metric itself. So no interval here is a
plain range of percentiles: the mean of the samples is moved to the metric first. The difference of
two runs on the same samples has little of that bias; prefer it.

Shapes: B samples, I images, K categories, T IoU thresholds, E true positives at a threshold.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..progress import track
from .groups import CategoryGroups
from .metrics import group_means, mean
from .outcomes import Outcomes

_EPSILON = np.spacing(1)
_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """
    A metric and its spread over samples of images.

    Args:
        value: the metric on the images as they are.
        standard_error: standard deviation over samples.
        low: 2.5th percentile of the samples after moving their mean to `value`.
        high: 97.5th percentile likewise.
        bias: mean of the samples minus `value`; what was taken off.
    """

    value: float
    standard_error: float
    low: float
    high: float
    bias: float

    @classmethod
    def of(cls, value: float, samples: np.ndarray) -> "Interval":
        """From samples (B,); those that are nan (no annotation was drawn) are left out."""
        samples = samples[~np.isnan(samples)]
        if not len(samples) or np.isnan(value):
            return cls(value, *[float("nan")] * 4)
        bias = float(samples.mean()) - value
        low, high = np.quantile(samples - bias, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return cls(value, float(samples.std()), float(low), float(high), bias)


class WeightedAP:
    """
    Average precision of every category for given weights of the images.

    With all weights one it is what `precision_recall` computes, up to rounding.
    """

    def __init__(self, outcomes: Outcomes):
        self.outcomes = outcomes
        errs = np.flatnonzero(outcomes.wrong)
        errs_before = np.concatenate([[0], np.cumsum(outcomes.wrong != 0)])
        category = np.repeat(np.arange(outcomes.num_categories), np.diff(outcomes.offsets))
        self._thresholds = [
            _TruePositives.at(outcomes, threshold, category, errs, errs_before)
            for threshold in range(len(outcomes.iou_thresholds))
        ]
        last = max((hits.errs_at.max(initial=0) for hits in self._thresholds), default=0)
        self._errs_images = outcomes.image[errs[:last]].astype(np.intp)
        self._errs_starts = errs_before[outcomes.offsets[:-1]].clip(max=last)
        self._annotation_image = outcomes.annotation_image.astype(np.intp)
        self._annotation_category = outcomes.annotation_category.astype(np.intp)
        self._recalls = np.append(np.linspace(0, 1, outcomes.num_recalls), np.inf)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """
        Args:
            weights: (I,), how often each image counts.

        Returns:
            (T, K), nan for categories without an annotation of positive weight.
        """
        weights = weights.astype(np.float64)
        num_annotations = np.bincount(
            self._annotation_category,
            weights.take(self._annotation_image),
            minlength=self.outcomes.num_categories,
        )
        errs = _running_total(weights.take(self._errs_images))
        ap = np.stack(
            [self._at_threshold(hits, weights, errs, num_annotations) for hits in self._thresholds]
        )
        ap[:, num_annotations == 0] = np.nan
        return ap

    def _at_threshold(
        self,
        hits: "_TruePositives",
        weights: np.ndarray,
        errs: np.ndarray,
        num_annotations: np.ndarray,
    ) -> np.ndarray:
        """(K,) at one IoU threshold."""
        true = _running_total(weights.take(hits.images))
        spared = _running_total(weights.take(hits.spared_images))
        # What came before the category, which differs by category only.
        true_before = true.take(hits.starts)
        false_before = errs.take(self._errs_starts) - spared.take(hits.spared_starts)
        true = true[1:] - true_before.take(hits.category)
        false = errs.take(hits.errs_at) - spared.take(hits.spared_at)
        false -= false_before.take(hits.category)
        recall = true / np.maximum(num_annotations, 1).take(hits.category)
        precision = true / (false + true + _EPSILON)
        envelope = np.maximum.accumulate((precision + hits.shift)[::-1])[::-1] - hits.shift
        share = envelope * self._gained(recall, hits.is_first)
        total = np.bincount(hits.category, share, minlength=len(num_annotations))
        return total.astype(np.float64)  # it is int where nothing is right

    def _gained(self, recall: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """(E,) the share of the recall axis that each true positive adds to those before it."""
        if not self.outcomes.num_recalls:
            return np.where(is_first, recall, np.diff(recall, prepend=0))
        reached = (recall * (self.outcomes.num_recalls - 1)).astype(np.int64)
        reached += self._recalls.take(reached + 1) <= recall
        reached -= self._recalls.take(reached) > recall
        gained = np.where(is_first, reached + 1, np.diff(reached, prepend=0))
        return gained / self.outcomes.num_recalls


@dataclass(frozen=True)
class _TruePositives:
    """
    The E true positives at one threshold, by category and falling score, and what lies between.

    Potential errors are all detections that are wrong at some threshold; those that match something
    at this one are spared.

    Args:
        images: (E,).
        category: (E,).
        is_first: (E,) bool, of its category.
        starts: (K,), the first of each category.
        errs_at: (E,), potential errors before each.
        spared_images: images of the spared.
        spared_at: (E,), spared before each.
        spared_starts: (K,), spared before each category.
        shift: (E,), more for earlier categories: one running maximum from the end serves them all.
    """

    images: np.ndarray
    category: np.ndarray
    is_first: np.ndarray
    starts: np.ndarray
    errs_at: np.ndarray
    spared_images: np.ndarray
    spared_at: np.ndarray
    spared_starts: np.ndarray
    shift: np.ndarray

    @classmethod
    def at(
        cls,
        outcomes: Outcomes,
        threshold: int,
        category: np.ndarray,
        errs: np.ndarray,
        errs_before: np.ndarray,
    ) -> "_TruePositives":
        bit = np.uint16(1 << threshold)
        rows = np.flatnonzero(outcomes.right & bit)
        spared = errs[(outcomes.wrong[errs] & bit) == 0]
        of = category[rows]
        return cls(
            images=outcomes.image[rows].astype(np.intp),
            category=of,
            is_first=np.diff(of, prepend=-1) != 0,
            starts=np.searchsorted(rows, outcomes.offsets[:-1]),
            errs_at=errs_before[rows],
            spared_images=outcomes.image[spared].astype(np.intp),
            spared_at=np.searchsorted(spared, rows),
            spared_starts=np.searchsorted(spared, outcomes.offsets[:-1]),
            shift=2.0 * (outcomes.num_categories - of),
        )


def category_table_numbers(
    ap: np.ndarray, iou_thresholds: np.ndarray, partitions: Sequence[CategoryGroups]
) -> dict[str, float]:
    """AP, AP50, AP75 and the AP of groups, in [0, 1], from the (T, K) table of categories."""
    numbers = {"AP": mean(ap)}
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        rows = np.isclose(iou_thresholds, threshold)
        if rows.any():
            numbers[name] = mean(ap[rows])
    return numbers | group_means(ap.mean(axis=0), partitions)


def weighted_numbers(fold: WeightedAP, weights: np.ndarray) -> dict[str, float]:
    """The numbers of `category_table_numbers` for weights (I,) of the images."""
    outcomes = fold.outcomes
    return category_table_numbers(fold(weights), outcomes.iou_thresholds, outcomes.partitions)


def bootstrap(
    runs: Sequence[Outcomes], num_samples: int, *, seed: int = 0, num_threads: int | None = None
) -> list[dict[str, np.ndarray]]:
    """
    Metrics of runs on common samples of the images.

    Args:
        runs: outcomes on the same images.
        num_samples: B.
        seed: of the samples; sample b does not depend on how many there are.
        num_threads: by default one for each core.

    Returns:
        for each run (B,) values by metric, in [0, 1].
    """
    folds = [WeightedAP(run) for run in runs]
    num_images = runs[0].num_images

    def sample(number: int) -> list[dict[str, float]]:
        drawn = np.random.default_rng([seed, number]).integers(0, num_images, num_images)
        weights = np.bincount(drawn, minlength=num_images)
        return [weighted_numbers(fold, weights) for fold in folds]

    samples = _with_progress(sample, num_samples, num_threads or os.cpu_count() or 1)
    return [
        {name: np.array([numbers[run][name] for numbers in samples]) for name in samples[0][run]}
        for run in range(len(runs))
    ]


def intervals(outcomes: Outcomes, num_samples: int, *, seed: int = 0) -> dict[str, Interval]:
    """Metrics of a run with their spread, in [0, 1]."""
    values = weighted_numbers(WeightedAP(outcomes), np.ones(outcomes.num_images))
    (samples,) = bootstrap([outcomes], num_samples, seed=seed)
    return {name: Interval.of(value, samples[name]) for name, value in values.items()}


def _with_progress(function: Callable[[int], list], number: int, num_threads: int) -> list:
    with ThreadPoolExecutor(num_threads) as pool:
        samples = pool.map(function, range(number))
        return list(track(samples, "bootstrap", unit="sample", total=number))


def _running_total(values: np.ndarray) -> np.ndarray:
    """(N + 1,), the sum before each position."""
    total = np.empty(len(values) + 1)
    total[0] = 0
    np.cumsum(values, out=total[1:])
    return total
