"""What is dropped while the model runs, because no metric will ask for it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .annotations import VERIFIED
from .detections import Detections, Kept
from .ground_truth import GroundTruth
from .protocol import Protocol
from .selection import best_of_each

_FIRST_COMPACTION = 1 << 19


class Prefilter:
    """
    Applies caps and the table of verified categories image by image.

    Args:
        protocol: whose caps.
        ground_truth: says what was verified; None where there are no annotations.
        class_of_category: contiguous class of each category id.
        keep_unverified: apply the caps only.

    Attributes:
        kept: what is true of all detections that pass.
    """

    def __init__(
        self,
        protocol: Protocol,
        ground_truth: GroundTruth | None,
        class_of_category: Mapping[int, int],
        keep_unverified: bool = False,
    ):
        self._cap = protocol.max_dets_per_image
        self._category_cap = protocol.max_dets_per_category
        self._by_verification = ground_truth is not None and not keep_unverified
        self._rows: dict[int, np.ndarray] = {}
        if self._by_verification:
            num_classes = max(class_of_category.values(), default=-1) + 1
            classes = [class_of_category.get(id, -1) for id in ground_truth.category_ids.tolist()]
            known = np.array([c >= 0 for c in classes], dtype=bool)
            self._verified = np.zeros((ground_truth.num_images, num_classes), dtype=bool)
            self._verified[:, np.array(classes)[known]] = (
                ground_truth.cell_flags[:, known] & VERIFIED
            )
            self._rows = {id: row for row, id in enumerate(ground_truth.image_ids.tolist())}
        self.kept = Kept(
            max_dets_per_image=self._cap,
            max_dets_per_category=self._category_cap,
            verified_in=ground_truth.fingerprint if self._by_verification else "",
        )

    def __call__(
        self, image_id: int, classes: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Kept]:
        """
        Args:
            image_id: id of the annotation file.
            classes: (N,) contiguous classes.
            scores: (N,).

        Returns:
            the rows to keep (N',), which of them were verified (N',) bool, and what was dropped.
            Those that were not are kept only to take their place under the cap of their category.
        """
        if not np.isfinite(scores).all():  # an error, to be reported where all processes hear it
            return np.arange(len(scores)), np.ones(len(scores), dtype=bool), self.kept
        dropped = {}
        rows = np.flatnonzero(best_of_each(np.zeros_like(classes, np.int64), scores, self._cap))
        dropped["over the cap"] = len(scores) - len(rows)
        verified = np.ones(len(rows), dtype=bool)
        if image_id in self._rows and classes.max(initial=0) < self._verified.shape[1]:
            verified = self._verified[self._rows[image_id], classes[rows]]
        if self._category_cap is None:
            dropped["of unverified categories"] = int(np.count_nonzero(~verified))
            rows, verified = rows[verified], verified[verified]
        return rows, verified, replace(self.kept, dropped=dropped)


class CategoryCap:
    """
    Holds the best detections of each category seen so far, and tells what a new one must score.

    Args:
        cap: detections of a category that count.
        num_classes: K.

    Attributes:
        thresholds: (K,) float32; a detection of class k that scores less is not among the best.
    """

    def __init__(self, cap: int, num_classes: int):
        self._cap = cap
        self.thresholds = np.zeros(num_classes, dtype=np.float32)
        self._limit = _FIRST_COMPACTION

    def may_count(self, classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(N,) bool, which may be among the best; so may errors, which must not get lost here."""
        may = self._is_error(classes, scores)
        known = np.flatnonzero(~may)
        may[known] = scores[known] >= self.thresholds[classes[known]]
        return may

    def _is_error(self, classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(N,) bool, without a finite score or of no class; the evaluation ends with the reason."""
        return ~np.isfinite(scores) | (classes >= len(self.thresholds))

    def is_due(self, num_detections: int) -> bool:
        """Whether so many detections are worth a call of `compact`."""
        return num_detections > self._limit

    def compact(self, detections: Detections) -> Detections:
        """The best of each category, in the order that they had; raises the thresholds."""
        classes = detections.category_ids.astype(np.int64)
        errors = self._is_error(classes, detections.scores)
        best = best_of_each(classes, detections.scores, self._cap) | errors
        counted = best & ~errors
        full = np.bincount(classes[counted], minlength=len(self.thresholds)) >= self._cap
        lowest = np.full(len(self.thresholds), np.inf, dtype=np.float32)
        np.minimum.at(lowest, classes[counted], detections.scores[counted].astype(np.float32))
        self.thresholds[full] = lowest[full]
        self._limit = max(_FIRST_COMPACTION, 2 * int(np.count_nonzero(best)))
        return detections.take(np.flatnonzero(best)).with_dropped(
            {"over the category's cap": int(np.count_nonzero(~best))}
        )
