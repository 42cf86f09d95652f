"""
Which detections are right: the matching of LVIS and COCO over whole columns.

Matches never cross an image or a category, so all cells (pairs of an image and a category) advance
together: round r matches the r-th detection of every cell. Only detections that overlap an
annotation by at least the lowest threshold take part, and the number of rounds is the most of them
in one cell. Where numba is installed, a compiled loop over the detections takes their place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError
from ..progress import counter
from . import kernels
from .annotations import NOT_EXHAUSTIVE, POSITIVE, positions_in
from .boundary import boundaries
from .detections import Detections
from .ground_truth import GroundTruth
from .masks import mask_pair_ious
from .protocol import Protocol
from .selection import by_score_in_groups, detection_masks, rank_in_runs, select

IOU_TYPES = ("bbox", "segm", "boundary")

_PAIRS_PER_CHUNK = 1 << 19
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

    rows, image, category, areas, dropped = select(ground_truth, detections, iou_type, protocol)
    pairs = _pairs(ground_truth, detections, rows, image, category, iou_type, protocol)
    if iou_type == "boundary":
        pairs = _with_boundaries(ground_truth, detections, rows, pairs, boundary_dilation)

    # `rows` are in image order and the sort is stable, so image and model order break ties.
    scores = detections.scores[rows]
    order = by_score_in_groups(category, scores)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    detected, annotated, ious = pairs
    candidates, matched, right, taken = _assign(
        ground_truth, position[detected], annotated, ious, protocol
    )

    flags = ground_truth.cell_flags[image, category]
    in_range = _in_ranges(areas, protocol)
    errs_unmatched = in_range & ((flags & NOT_EXHAUSTIVE) == 0)[:, None]
    counts = _counts(ground_truth, protocol)
    num_annotations = np.zeros((ground_truth.num_categories, counts.shape[1]), dtype=np.int64)
    np.add.at(num_annotations, ground_truth.category, counts)
    per_category = np.bincount(category, minlength=ground_truth.num_categories)
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
        num_annotations=num_annotations,
        dropped=dropped,
    )


def _pairs(
    ground_truth: GroundTruth,
    detections: Detections,
    rows: np.ndarray,
    image: np.ndarray,
    category: np.ndarray,
    iou_type: str,
    protocol: Protocol,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Pairs of a detection and an annotation of its cell whose IoU reaches the lowest threshold.

    Returns:
        positions in `rows`, annotations, and IoUs, each (P,), sorted by the first two.
    """
    positive = np.flatnonzero(ground_truth.cell_flags[image, category] & POSITIVE)
    keys, first_annotation, num_annotations = ground_truth.cells
    cell = np.searchsorted(keys, ground_truth.cell_keys(image[positive], category[positive]))
    first, count = first_annotation[cell], num_annotations[cell]
    lowest = min(protocol.iou_thresholds[0], 1 - 1e-10)

    if iou_type != "bbox":
        pair_ious = _mask_ious(ground_truth, detections, rows[positive], lowest)
    else:
        boxes = detections.boxes[rows[positive]].astype(np.float64)
        pair_ious = box_ious(boxes, ground_truth.boxes, ground_truth.crowd)

    found = []
    ends = np.cumsum(count)
    start = 0
    progress = counter(f"matching by {iou_type}", unit="detections", total=len(positive))
    while start < len(positive):
        taken = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, taken + _PAIRS_PER_CHUNK, side="right")))
        number = count[start:stop]
        detected = np.repeat(np.arange(start, stop), number)
        shift = first[start:stop] - (ends[start:stop] - number - taken)
        annotated = np.arange(len(detected)) + np.repeat(shift, number)
        detected, annotated, ious = pair_ious(detected, annotated)
        enough = ious >= lowest
        found.append((positive[detected[enough]], annotated[enough], ious[enough]))
        progress.update(stop - start)
        start = stop
    progress.close()
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    return tuple(np.concatenate(column) for column in zip(*found))


PairIous = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Takes pairs; returns those that may reach the lowest threshold and their IoU."""


def box_ious(
    detected_boxes: np.ndarray, annotated_boxes: np.ndarray, crowd: np.ndarray
) -> PairIous:
    # The order of operations is the one of COCO's C code; another one would round differently.
    detected_columns, annotated_columns = _corners(detected_boxes), _corners(annotated_boxes)

    def pair_ious(detected, annotated):
        left, top, right, bottom, area = (column[detected] for column in detected_columns)
        left_g, top_g, right_g, bottom_g, area_g = (
            column[annotated] for column in annotated_columns
        )
        width = np.minimum(right, right_g) - np.maximum(left, left_g)
        height = np.minimum(bottom, bottom_g) - np.maximum(top, top_g)
        overlap = (width > 0) & (height > 0)
        intersection = width * height
        union = area + area_g - intersection
        if crowd.any():
            union = np.where(crowd[annotated], area, union)
        ious = np.divide(intersection, union, out=np.zeros_like(union), where=overlap)
        return detected, annotated, ious

    return pair_ious


def _corners(boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    x, y, width, height = np.ascontiguousarray(boxes.T)
    return x, y, width + x, height + y, width * height


def _mask_ious(
    ground_truth: GroundTruth, detections: Detections, rows: np.ndarray, lowest: float
) -> PairIous:
    masks = detection_masks(detections).take(rows)
    areas, annotated_areas = masks.areas(), ground_truth.masks.areas()
    boxes, annotated_boxes = masks.boxes(), ground_truth.masks.boxes()
    detected_columns, annotated_columns = _corners(boxes), _corners(annotated_boxes)

    def pair_ious(detected, annotated):
        # Masks intersect at most where their boxes do: most pairs need no look at the pixels.
        left, top, right, bottom, _ = (column[detected] for column in detected_columns)
        left_g, top_g, right_g, bottom_g, _ = (column[annotated] for column in annotated_columns)
        width = (np.minimum(right, right_g) - np.maximum(left, left_g)).clip(min=0)
        height = (np.minimum(bottom, bottom_g) - np.maximum(top, top_g)).clip(min=0)
        area, area_g = areas[detected], annotated_areas[annotated]
        bound = np.minimum(width * height, np.minimum(area, area_g))
        union = np.where(ground_truth.crowd[annotated], area, area + area_g - bound)
        near = bound >= (lowest - 1e-9) * union
        detected, annotated = detected[near], annotated[near]
        cells = ground_truth.cell_keys(ground_truth.image, ground_truth.category)[annotated]
        ious = mask_pair_ious(
            masks, ground_truth.masks, (detected, annotated), cells, ground_truth.crowd
        )
        return detected, annotated, ious

    return pair_ious


def _with_boundaries(
    ground_truth: GroundTruth,
    detections: Detections,
    rows: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    dilation: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs with the lesser of the IoUs of masks and of boundaries; crowds have none."""
    detected, annotated, ious = pairs
    of_masks, mask_of = np.unique(detected, return_inverse=True)
    of_annotations, annotation_of = np.unique(annotated, return_inverse=True)
    boundary_ious = mask_pair_ious(
        boundaries(detection_masks(detections).take(rows[of_masks]), dilation),
        boundaries(ground_truth.masks.take(of_annotations), dilation),
        (mask_of, annotation_of),
        ground_truth.cell_keys(ground_truth.image, ground_truth.category)[annotated],
        np.zeros(len(of_annotations), dtype=bool),
    )
    lesser = np.where(ground_truth.crowd[annotated], ious, np.minimum(ious, boundary_ious))
    return detected, annotated, lesser


def _assign(
    ground_truth: GroundTruth,
    detected: np.ndarray,
    annotated: np.ndarray,
    ious: np.ndarray,
    protocol: Protocol,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Lets the detections of each cell choose in order of score, for all thresholds and area ranges.

    Args:
        detected: (P,), position of the detection of each pair in the order of the folds.
        annotated: (P,), annotation of each pair.
        ious: (P,).

    Returns:
        candidates (C,), matched (C, T, A), right (C, T, A), taken (G, T, A).
    """
    # Worst choice first: within a detection by IoU, then by the order of the annotation file.
    order = np.lexsort((annotated, ious, detected))
    detected, annotated, ious = detected[order], annotated[order], ious[order]
    candidates, first, count = np.unique(detected, return_index=True, return_counts=True)

    thresholds = np.minimum(protocol.iou_thresholds, 1 - 1e-10)
    counts = _counts(ground_truth, protocol)
    problem = annotated, ious, first, count, thresholds, counts, ground_truth.crowd
    if kernels.available():
        return candidates, *kernels.assign(*problem)
    image, category = ground_truth.image[annotated[first]], ground_truth.category[annotated[first]]
    return candidates, *_assign_in_rounds(ground_truth.cell_keys(image, category), *problem)


def _assign_in_rounds(
    cell: np.ndarray,
    annotated: np.ndarray,
    ious: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    thresholds: np.ndarray,
    counts: np.ndarray,
    crowd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `kernels.assign`; `cell` (C,) is that of each candidate."""
    # The r-th candidate of a cell chooses in round r.
    by_cell = np.argsort(cell, kind="stable")
    rank = np.empty_like(by_cell)
    rank[by_cell] = rank_in_runs(cell[by_cell])
    by_round = np.argsort(rank, kind="stable")
    per_round = np.bincount(rank)

    shape = (len(thresholds), counts.shape[1])
    taken = np.zeros((len(counts), *shape), dtype=bool)
    matched = np.zeros((len(cell), *shape), dtype=bool)
    right = np.zeros_like(matched)
    stop = 0
    for number in per_round:
        choosing = by_round[stop : stop + number]
        stop += number
        sizes = count[choosing]
        begins = np.cumsum(sizes) - sizes
        pair = np.arange(sizes.sum()) + np.repeat(first[choosing] - begins, sizes)
        option = annotated[pair]

        free = (ious[pair, None] >= thresholds)[:, :, None] & ~taken[option]  # (P', T, A)
        value = np.arange(1, len(pair) + 1, dtype=np.int32)[:, None] + _COUNTED * counts[option]
        best = np.maximum.reduceat(free * value[:, None, :], begins, axis=0)  # (C', T, A)
        matched[choosing] = best > 0
        right[choosing] = best >= _COUNTED
        _, threshold, area_range = chosen = np.nonzero(best)
        taker = option[(best[chosen] & ~_COUNTED) - 1]
        taken[taker, threshold, area_range] = ~crowd[taker]
    return matched, right, taken


def _in_ranges(areas: np.ndarray, protocol: Protocol) -> np.ndarray:
    """(len(areas), A) bool."""
    low = np.array([area_range.low for area_range in protocol.area_ranges])
    high = np.array([area_range.high for area_range in protocol.area_ranges])
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def _counts(ground_truth: GroundTruth, protocol: Protocol) -> np.ndarray:
    """(G, A) bool, whether the annotation counts in the range."""
    return _in_ranges(ground_truth.areas, protocol) & ~ground_truth.ignored[:, None]


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
