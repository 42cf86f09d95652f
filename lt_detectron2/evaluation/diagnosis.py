"""
Why detections are wrong, and how far their scores can be believed, as folds over matches.

Kinds of errors are those of TIDE (https://arxiv.org/abs/2008.08115), at IoU 0.5. A false positive
of category c, whose highest IoU with a counting annotation of c is s and with one of another
category is o, is

    localization    0.1 <= s < 0.5: the right object, a bad box
    classification  o >= 0.5: a good box, another object
    duplicate       s >= 0.5: an object that a better detection has found
    both            0.1 <= o: a bad box around another object
    background      no object

in this order of precedence, and an annotation is missed if nobody found it and no error of the
first two kinds is about it. What an error costs is the AP50 that its repair would gain: those of
the first two kinds find their object if nobody else did (the best one only), all others vanish, and
missed annotations are not asked for.

Shapes: N detections that count, G annotations, K categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .detections import Detections
from .ground_truth import GroundTruth
from .groups import CategoryGroups
from .matching import Matches
from .metrics import group_means, mean, precision_recall
from .outcomes import Outcomes
from .overlaps import box_ious
from .protocol import AREA_RANGES

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a detection is about an object, and up to which it is about nothing."""

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")

_PAIRS_PER_CHUNK = 1 << 19


@dataclass(frozen=True)
class Errors:
    """
    The kind of each error.

    Args:
        kind: (N,) int8, index in `KINDS` of each false positive, -1 of all other rows of `matches`.
        target: (N,) int64, the annotation that a classification or localization error is about, or
            -1.
        missed: (G,) bool.
        counts: number of errors by kind.
        gains: AP50 in [0, 1] that repairing one kind would gain: by kind, "AP" and the groups.
    """

    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray
    counts: dict[str, int]
    gains: dict[str, dict[str, float]]


def diagnose(
    ground_truth: GroundTruth,
    detections: Detections,
    matches: Matches,
    *partitions: CategoryGroups | None,
) -> Errors:
    """
    Kinds of errors of the boxes.

    Args:
        detections: what `matches` were made from, with the task "bbox".
        partitions: groups to average over.
    """
    threshold = matches.protocol.iou_index(FOREGROUND)
    category = np.repeat(np.arange(ground_truth.num_categories), np.diff(matches.offsets))
    true, false = np.zeros((2, len(category)), dtype=bool)
    true[matches.candidates] = matches.right[:, threshold, 0]
    false |= matches.errs_unmatched[:, 0]
    false[matches.candidates[matches.matched[:, threshold, 0]]] = False

    rows = np.flatnonzero(false)
    boxes = detections.boxes[matches.rows[rows]]
    own, own_target, other, other_target = _best_overlaps(
        ground_truth, boxes, matches.image[rows], category[rows]
    )
    kinds = np.select(
        [
            (own >= BACKGROUND) & (own < FOREGROUND),
            other >= FOREGROUND,
            own >= FOREGROUND,
            other >= BACKGROUND,
        ],
        [KINDS.index(name) for name in ("localization", "classification", "duplicate", "both")],
        KINDS.index("background"),
    )
    kind = np.full(len(category), -1, dtype=np.int8)
    kind[rows] = kinds
    target = np.full(len(category), -1)
    misplaced, confused = (kinds == KINDS.index(n) for n in ("localization", "classification"))
    target[rows[misplaced]] = own_target[misplaced]
    target[rows[confused]] = other_target[confused]

    counted = ~ground_truth.ignored
    unfound = counted & ~matches.taken[:, threshold, 0]
    missed = unfound.copy()
    missed[target[target >= 0]] = False
    counts = np.bincount(kind[rows], minlength=len(KINDS))
    counts[KINDS.index("missed")] = np.count_nonzero(missed)

    curve = _Curve(matches, category, true, false, ground_truth)
    before = curve.numbers(partitions)
    gains = {}
    for index, name in enumerate(KINDS):
        if name == "missed":
            repaired = curve.without_annotations(missed)
        else:
            repaired = curve.repaired(kind == index, target, unfound)
        after = repaired.numbers(partitions)
        gains[name] = {key: after[key] - before[key] for key in before}
    return Errors(kind, target, missed, dict(zip(KINDS, counts.tolist())), gains)


def _best_overlaps(
    ground_truth: GroundTruth, boxes: np.ndarray, image: np.ndarray, category: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Highest IoU of each box with a counting annotation of its category, and with one of another.

    Returns:
        IoU (0 for none) and annotation, for either; each (N,).
    """
    counted = np.flatnonzero(~ground_truth.ignored)
    by_image = counted[np.argsort(ground_truth.image[counted], kind="stable")]
    number = np.bincount(ground_truth.image[counted], minlength=ground_truth.num_images)
    first = np.cumsum(number) - number
    ious = np.zeros((2, len(boxes)))
    targets = np.full((2, len(boxes)), -1)
    overlaps = box_ious(
        boxes.astype(np.float64), ground_truth.boxes, np.zeros(len(ground_truth.crowd), bool)
    )
    ends = np.cumsum(number[image])
    start = 0
    while start < len(boxes):
        taken = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, taken + _PAIRS_PER_CHUNK, side="right")))
        sizes = number[image[start:stop]]
        row = np.repeat(np.arange(start, stop), sizes)
        within = np.arange(len(row)) - np.repeat(ends[start:stop] - sizes - taken, sizes)
        annotated = by_image[first[image[row]] + within]
        _, _, iou = overlaps(row, annotated)
        is_other = (ground_truth.category[annotated] != category[row]).astype(int)
        order = np.flatnonzero(iou > 0)
        order = order[np.argsort(iou[order], kind="stable")]  # the last one written is the best
        ious[is_other[order], row[order]] = iou[order]
        targets[is_other[order], row[order]] = annotated[order]
        start = stop
    return ious[0], targets[0], ious[1], targets[1]


class _Curve:
    """Detections that are right or wrong at one threshold, to be changed and measured again."""

    def __init__(
        self,
        matches: Matches,
        category: np.ndarray,
        true: np.ndarray,
        false: np.ndarray,
        ground_truth: GroundTruth,
    ):
        self._matches = matches
        self._category, self._true, self._false = category, true, false
        self._ground_truth = ground_truth
        self._counted = ~ground_truth.ignored

    def _changed(self, **values: np.ndarray) -> "_Curve":
        other = object.__new__(_Curve)
        vars(other).update(vars(self) | values)
        return other

    def without_annotations(self, gone: np.ndarray) -> "_Curve":
        """`gone` (G,) bool."""
        return self._changed(_counted=self._counted & ~gone)

    def repaired(self, errors: np.ndarray, target: np.ndarray, unfound: np.ndarray) -> "_Curve":
        """`errors` (N,) bool find their target if it is unfound (G,) and the error the best one."""
        rows = np.flatnonzero(errors & (target >= 0))
        rows = rows[unfound[target[rows]]]
        rows = rows[np.argsort(-self._matches.scores[rows], kind="stable")]
        rows = rows[np.unique(target[rows], return_index=True)[1]]
        category, true = self._category.copy(), self._true.copy()
        category[rows] = self._ground_truth.category[target[rows]]
        true[rows] = True
        return self._changed(_category=category, _true=true, _false=self._false & ~errors)

    def numbers(self, partitions: Sequence[CategoryGroups | None]) -> dict[str, float]:
        """AP50 and that of groups, in [0, 1]."""
        num_categories = self._ground_truth.num_categories
        rows = np.flatnonzero(self._true | self._false)
        category = self._category[rows]
        rows = rows[np.lexsort((-self._matches.scores[rows], category))]
        per_category = np.bincount(category, minlength=num_categories)
        hits = self._true[rows, None, None]
        num_annotations = np.bincount(
            self._ground_truth.category[self._counted], minlength=num_categories
        )
        protocol = replace(
            self._matches.protocol, iou_thresholds=(FOREGROUND,), area_ranges=AREA_RANGES[:1]
        )
        outcome = replace(
            self._matches,
            protocol=protocol,
            offsets=np.concatenate([[0], np.cumsum(per_category)]),
            errs_unmatched=np.ones((len(rows), 1), dtype=bool),
            candidates=np.arange(len(rows)),
            matched=hits,
            right=hits,
            num_annotations=num_annotations[:, None],
        )
        ap = precision_recall(outcome).category_ap()
        return {"AP": mean(ap)} | group_means(ap, partitions)


def calibration_error(outcomes: Outcomes, *, bins: int = 10) -> dict[str, dict[str, float]]:
    """
    How far scores are from the share of right detections, at IoU 0.5.

        ECE = sum_b n_b / n | precision_b - mean score_b |

    over bins of equal width of the score; it is 0 when of the detections with score 0.7, 70 % are
    right (Naeini et al., AAAI 2015). Detections that are neither right nor wrong are left out. The
    many with a score near 0 weigh most, so compare runs of the same caps.

    Returns:
        for "all" and each group of the categories: "detections", their number; "score" and
        "precision", means; "ECE"; nan without detections.
    """
    threshold = int(np.flatnonzero(np.isclose(outcomes.iou_thresholds, FOREGROUND))[0])
    bit = np.uint16(1 << threshold)
    right = (outcomes.right & bit) != 0
    counts = right | ((outcomes.wrong & bit) != 0)
    category = np.repeat(np.arange(outcomes.num_categories), np.diff(outcomes.offsets))[counts]
    right, scores = right[counts], outcomes.scores[counts].astype(np.float64)
    number = np.minimum((scores * bins).astype(np.int64), bins - 1).clip(min=0)
    # Sums by category and bin; groups are sums of them.
    cell = category * bins + number
    shape = (outcomes.num_categories, bins)
    sums = np.stack(
        [
            np.bincount(cell, weights, minlength=shape[0] * bins).reshape(shape)
            for weights in (None, right, scores)
        ]
    )
    members = {"all": np.arange(outcomes.num_categories)}
    for groups in outcomes.partitions:
        members |= {name: groups.members(name) for name in groups.names}
    return {name: _calibration(sums[:, rows].sum(axis=1)) for name, rows in members.items()}


def _calibration(sums: np.ndarray) -> dict[str, float]:
    """From detections, right ones and scores, each summed by bin: (3, bins)."""
    number, right, score = sums.sum(axis=1).tolist()
    if not number:
        return {"detections": 0, **dict.fromkeys(("score", "precision", "ECE"), float("nan"))}
    return {
        "detections": int(number),
        "score": score / number,
        "precision": right / number,
        "ECE": float(np.abs(sums[1] - sums[2]).sum() / number),
    }
