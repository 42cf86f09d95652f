"""
Which detections are right: the matching of LVIS and COCO over whole columns.

Matches never cross an image or a category, so all cells (pairs of an image and a category) advance
together: round r matches the r-th detection of every cell. Only detections that overlap an
annotation by at least the lowest threshold take part, and the number of rounds is the most of them
in one cell. Where numba is installed, a compiled loop over the detections takes their place.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError
from . import kernels
from .annotations import NOT_EXHAUSTIVE, positions_in
from .detections import Detections
from .ground_truth import GroundTruth
from .overlaps import Options, options
from .protocol import Protocol
from .selection import by_score_in_groups, rank_in_runs, select

IOU_TYPES = ("bbox", "segm", "boundary")

_CANDIDATES_AT_ONCE = 1 << 13
_COUNTED = np.int32(1 << 30)
"""Added to the rank of a pair so that annotations that count come before ignored ones."""


@dataclass(frozen=True)
class Matches:
    """
    The outcome of matching; every metric is a fold over it.

    Rows are the N detections that count in the protocol, sorted by category, then falling score,
    then image, then the order of the model. Those of category k are `offsets[k]` to
    `offsets[k + 1]`. Candidates are the C rows that overlap an annotation enough for the lowest
    threshold; all other rows are unmatched everywhere.

    Args:
        protocol: thresholds and area ranges.
        rows: (N,) int64, rows of the `Detections` that were matched.
        image: (N,) int64, image of each row.
        scores: (N,) float.
        offsets: (K + 1,) int64.
        errs_unmatched: (N, A) bool, whether the row is a false positive when it is unmatched. It is
            not if it lies outside the area range or its category is not exhaustively annotated.
        candidates: (C,) int64, ascending positions among the N rows.
        matched: (C, T, A) bool, whether the candidate took an annotation.
        right: (C, T, A) bool, whether it took one that counts: the true positives.
        taken: (G, T, A) bool, whether a detection took the annotation; crowds are never taken.
        num_annotations: (K, A) int64, annotations that count.
        dropped: how many detections each rule set aside, for the report.
    """

    protocol: Protocol
    rows: np.ndarray
    image: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray
    errs_unmatched: np.ndarray
    candidates: np.ndarray
    matched: np.ndarray
    right: np.ndarray
    taken: np.ndarray
    num_annotations: np.ndarray
    dropped: dict[str, int]

    def best_of_each_cell(self, cap: int) -> "Matches":
        """
        The outcome under a lower cap per category and image: who chose first chose the same.
        """
        category = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        cell = category * (self.image.max(initial=0) + 1) + self.image
        by_cell = np.argsort(cell, kind="stable")
        kept = np.empty(len(cell), dtype=bool)
        kept[by_cell] = rank_in_runs(cell[by_cell]) < cap
        position = np.cumsum(kept) - 1
        chosen = kept[self.candidates]
        return replace(
            self,
            rows=self.rows[kept],
            image=self.image[kept],
            scores=self.scores[kept],
            offsets=np.concatenate([[0], np.cumsum(kept)])[self.offsets],
            errs_unmatched=self.errs_unmatched[kept],
            candidates=position[self.candidates[chosen]],
            matched=self.matched[chosen],
            right=self.right[chosen],
        )

    def pooled(self, categories: np.ndarray) -> "Matches":
        """
        The same outcome as one category: detections of `categories` in one list by score.

        Scores of rare and frequent categories are then compared with each other (AP-pool,
        https://arxiv.org/abs/2102.01066).

        Args:
            categories: positions of the K' categories of the pool.
        """
        members = np.zeros(len(self.offsets) - 1, dtype=bool)
        members[categories] = True
        rows = np.flatnonzero(np.repeat(members, np.diff(self.offsets)))
        rows = rows[np.argsort(-self.scores[rows], kind="stable")]
        position = np.full(len(self.scores), -1)
        position[rows] = np.arange(len(rows))
        candidates = position[self.candidates]
        order = np.argsort(candidates, kind="stable")[np.count_nonzero(candidates < 0) :]
        return replace(
            self,
            rows=self.rows[rows],
            image=self.image[rows],
            scores=self.scores[rows],
            offsets=np.array([0, len(rows)]),
            errs_unmatched=self.errs_unmatched[rows],
            candidates=candidates[order],
            matched=self.matched[order],
            right=self.right[order],
            num_annotations=self.num_annotations[members].sum(axis=0, keepdims=True),
        )


def match(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    iou_type: str = "bbox",
    protocol: Protocol | None = None,
    boundary_dilation: float = 0.02,
) -> Matches:
    """
    Matches detections with annotations as the `lvis` package and pycocotools do, bit for bit.

    By default a detection counts if it is among the best of its image, its category was verified
    in the image, and its area is positive. Within a cell the detections choose by falling score:
    the free annotation of highest IoU, those that count before ignored ones, the later one of equal
    IoU.

    Args:
        iou_type: what is compared: "bbox", "segm", or "boundary", where the overlap is that of
            masks or of their boundaries, whichever is less. It also says which area decides about
            the area ranges.
        protocol: by default the one of the LVIS challenge.
        boundary_dilation: width of boundaries as a share of the image's diagonal.

    Raises:
        UserError: an unknown image, a score that is not a number, or masks that are absent or have
            the wrong size.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"expected iou_type to be one of {IOU_TYPES}, got {iou_type!r}")
    if iou_type != "bbox":
        _check_masks(ground_truth, detections)
    protocol = protocol or Protocol()

    selection = select(ground_truth, detections, iou_type, protocol)
    thresholds = np.minimum(protocol.iou_thresholds, 1 - 1e-10)
    found = options(ground_truth, detections, selection, iou_type, thresholds[0], boundary_dilation)

    # Rows are in image order and the sort is stable, so image and model order break ties.
    rows, image, category, areas, dropped = selection
    scores = detections.scores[rows]
    order = by_score_in_groups(category, scores)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    counts = _in_ranges(ground_truth.areas, protocol) & ~ground_truth.ignored[:, None]
    candidates, matched, right, taken = _assign(
        ground_truth, position[found.detected], found, thresholds, counts
    )

    flags = ground_truth.cell_flags[image, category]
    in_range = _in_ranges(areas, protocol)
    errs_unmatched = in_range & ((flags & NOT_EXHAUSTIVE) == 0)[:, None]
    num_categories = ground_truth.num_categories
    num_annotations = [
        np.bincount(ground_truth.category[counted], minlength=num_categories)
        for counted in counts.T
    ]
    per_category = np.bincount(category, minlength=num_categories)
    return Matches(
        protocol=protocol,
        rows=rows[order],
        image=image[order],
        scores=scores[order],
        offsets=np.concatenate([[0], np.cumsum(per_category)]),
        errs_unmatched=errs_unmatched[order],
        candidates=candidates,
        matched=matched,
        right=right,
        taken=taken,
        num_annotations=np.stack(num_annotations, axis=1),
        dropped=dropped,
    )


def _assign(
    ground_truth: GroundTruth,
    position: np.ndarray,
    found: Options,
    thresholds: np.ndarray,
    counts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Lets the detections of each cell choose in order of score, for all thresholds and area ranges.

    Args:
        position: (C,), of each detection that has options in the order of the folds.
        thresholds: (T,), rising.
        counts: (G, A) bool, whether an annotation counts in an area range.

    Returns:
        candidates (C,), matched (C, T, A), right (C, T, A), taken (G, T, A).
    """
    order = np.argsort(position)
    first, count, annotated = found.first[order], found.count[order], found.annotated
    problem = annotated, found.ious, first, count, thresholds, counts, ground_truth.crowd
    # Memory of NumPy, which asks for large pages: the first touch of small ones takes time.
    shape = (len(thresholds), counts.shape[1])
    matched = np.zeros((len(order), *shape), dtype=bool)
    right = np.zeros(matched.shape, dtype=bool)
    taken = np.zeros((len(counts), *shape), dtype=bool)
    if kernels.available():
        kernels.assign(*problem, matched, right, taken)
    else:
        option = annotated[first]
        cell = ground_truth.cell_keys(ground_truth.image[option], ground_truth.category[option])
        _assign_in_rounds(cell, *problem, matched, right, taken)
    return position[order], matched, right, taken


def _assign_in_rounds(
    cell: np.ndarray,
    annotated: np.ndarray,
    ious: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    thresholds: np.ndarray,
    counts: np.ndarray,
    crowd: np.ndarray,
    matched: np.ndarray,
    right: np.ndarray,
    taken: np.ndarray,
) -> None:
    """As `kernels.assign`; `cell` (C,) is that of each candidate."""
    # The r-th candidate of a cell chooses in round r.
    by_cell = np.argsort(cell, kind="stable")
    rank = np.empty_like(by_cell)
    rank[by_cell] = rank_in_runs(cell[by_cell])
    by_round = np.argsort(rank, kind="stable")
    per_round = np.bincount(rank)
    ends = np.cumsum(per_round)
    parts = (
        by_round[begin : min(begin + _CANDIDATES_AT_ONCE, end)]
        for start, end in zip(ends - per_round, ends)
        for begin in range(start, end, _CANDIDATES_AT_ONCE)
    )
    for choosing in parts:
        sizes = count[choosing]
        begins = np.cumsum(sizes) - sizes
        pair = np.arange(sizes.sum()) + np.repeat(first[choosing] - begins, sizes)
        option = annotated[pair]

        free = (ious[pair, None] >= thresholds)[:, :, None] & ~taken[option]  # (P', T, A)
        value = np.arange(1, len(pair) + 1, dtype=np.int32)[:, None] + _COUNTED * counts[option]
        best = np.maximum.reduceat(free * value[:, None, :], begins, axis=0)  # (C', T, A)
        matched[choosing] = best > 0
        right[choosing] = best >= _COUNTED
        chosen = np.flatnonzero(best)  # in (C', T, A), flat: thrice as fast as three indices
        taker = option[(best.ravel()[chosen] & ~_COUNTED) - 1]
        taken.reshape(len(taken), -1)[taker, chosen % best[0].size] = ~crowd[taker]


def _in_ranges(areas: np.ndarray, protocol: Protocol) -> np.ndarray:
    """(len(areas), A) bool."""
    low = np.array([area_range.low for area_range in protocol.area_ranges])
    high = np.array([area_range.high for area_range in protocol.area_ranges])
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def _check_masks(ground_truth: GroundTruth, detections: Detections) -> None:
    if ground_truth.masks is None:
        raise UserError(
            "the tasks 'segm' and 'boundary' expect annotations with masks, these have none: use "
            "GroundTruth.from_lvis(dataset, with_masks=True)"
        )
    if not len(detections):
        return
    if detections.masks is None:
        raise UserError(
            "the tasks 'segm' and 'boundary' expect detections with masks, these have boxes only: "
            "evaluate the task 'bbox' or a model with a mask head"
        )
    image, known = positions_in(ground_truth.image_ids, detections.image_ids)
    wrong = known & (ground_truth.image_sizes[image] != detections.masks.sizes).any(axis=1)
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        raise UserError(
            f"expected masks of the size of their image, detection {row} of image "
            f"{detections.image_ids[row]} has {detections.masks.sizes[row].tolist()} instead of "
            f"{ground_truth.image_sizes[image[row]].tolist()} (height, width): predict at the "
            "original resolution"
        )
