"""Which detections count: caps, verified categories and areas."""

import logging
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .annotations import VERIFIED, positions_in
from .detections import Detections
from .ground_truth import GroundTruth
from .masks import RunLengthMasks
from .protocol import Protocol

logger = logging.getLogger(__name__)


class Selection(NamedTuple):
    """
    Detections that count, in the order of images and within an image in that of the model.

    Args:
        rows: (N,) rows of the `Detections`.
        image: (N,) int64, position of the image.
        category: (N,) int64, position of the category.
        areas: (N,) float64.
        dropped: how many detections each rule set aside, for the report.
    """

    rows: np.ndarray
    image: np.ndarray
    category: np.ndarray
    areas: np.ndarray
    dropped: dict[str, int]


def select(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, protocol: Protocol
) -> Selection:
    """
    Applies the rules of a protocol, in the order of the official APIs: caps first.

    Raises:
        UserError: an unknown image, or a score or box that is not finite.
    """
    check_numbers(detections)
    image, known = positions_in(ground_truth.image_ids, detections.image_ids)
    if not known.all():
        unknown = np.unique(detections.image_ids[~known])
        raise UserError(
            f"expected detections for the {ground_truth.num_images} annotated images, got "
            f"{np.count_nonzero(~known)} for unknown image ids such as {unknown[:3].tolist()}: "
            "evaluate the predictions on the set they were made for"
        )
    scores, category_ids, order = detections.scores, detections.category_ids, None
    if np.any(image[1:] < image[:-1]):
        order = np.argsort(image, kind="stable")
        image, scores, category_ids = image[order], scores[order], category_ids[order]
    dropped = {}
    # One mask over all rows: new memory takes more time than what is done with it, and columns of
    # all rows are large.
    kept = np.ones(len(detections), dtype=bool)

    def keep(allowed: np.ndarray, why: str) -> None:
        before = np.count_nonzero(kept)
        np.logical_and(kept, allowed, out=kept)
        dropped[why] = int(before - np.count_nonzero(kept))

    keep(best_of_each(image, scores, protocol.max_dets_per_image), "over the cap")
    category, known = positions_in(ground_truth.category_ids, category_ids)
    keep(known, "of unknown categories")
    if protocol.max_dets_per_category is not None:
        best = _best_of_kept(kept, category, scores, protocol.max_dets_per_category)
        keep(best, "over the category's cap")
    if ground_truth.num_categories:  # otherwise there are no flags to look up, and nothing is left
        verified = (ground_truth.cell_flags[image, category] & VERIFIED) != 0
        keep(verified, "of unverified categories")
    if protocol.max_dets_per_cell is not None:
        cell = ground_truth.cell_keys(image, category)
        best = _best_of_kept(kept, cell, scores, protocol.max_dets_per_cell)
        keep(best, "over the cell's cap")
    places = np.flatnonzero(kept)
    image, category = image[places], category[places]
    rows = places if order is None else order[places]
    if iou_type == "bbox":
        areas = detections.boxes[rows, 2].astype(np.float64) * detections.boxes[rows, 3]
    else:
        areas = detection_masks(detections).take(rows).areas()
    if not protocol.empty_detections_count:
        has_area = (areas > 0) & (areas < np.inf)
        dropped["without area"] = len(rows) - int(np.count_nonzero(has_area))
        if dropped["without area"]:
            rows, image, category, areas = (c[has_area] for c in (rows, image, category, areas))
    return Selection(rows, image, category, areas, dropped)


def best_of_each(group: np.ndarray, scores: np.ndarray, cap: int | None) -> np.ndarray:
    """(N,) bool, the `cap` best of each group (an int >= 0); earlier ones of equal score."""
    kept = np.ones(len(group), dtype=bool)
    if cap is None or len(group) <= cap:
        return kept
    if group.max() < 4 * len(group):
        sizes = np.bincount(group)
    else:
        _, group, sizes = np.unique(group, return_inverse=True, return_counts=True)
    if sizes.max() > cap:
        crowded = np.flatnonzero(sizes[group] > cap)
        order = crowded[np.lexsort((-scores[crowded], group[crowded]))]
        kept[order[rank_in_runs(group[order]) >= cap]] = False
    return kept


def _best_of_kept(kept: np.ndarray, group: np.ndarray, scores: np.ndarray, cap: int) -> np.ndarray:
    """(N,) bool, the `cap` best of each group among those that are kept."""
    rows = np.flatnonzero(kept)
    best = np.zeros_like(kept)
    best[rows] = best_of_each(group[rows], scores[rows], cap)
    return best


def by_score_in_groups(group: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) int64, the stable order by group (an int64 >= 0), then falling finite score."""
    if scores.dtype != np.float32 or group.max(initial=0) >= 1 << 30:
        return np.lexsort((-scores, group))
    # Bits of a float sort like a number once those of negative ones are turned around. One key a
    # row lets NumPy sort with vector instructions; equal keys are put in order afterwards.
    bits = (-scores + np.float32(0)).view(np.int32)
    key = (group << 33) + np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    order = np.argsort(key)
    ends = np.diff(key[order], prepend=-1, append=-1) != 0
    tied = np.flatnonzero(~(ends[1:] & ends[:-1]))
    run = np.cumsum(ends)[tied]
    order[tied] = order[tied][np.lexsort((order[tied], run))]
    return order


def rank_in_runs(sorted_group: np.ndarray) -> np.ndarray:
    """(N,) int64, position of each element within its run of equal values."""
    first = np.flatnonzero(np.diff(sorted_group, prepend=-1))
    sizes = np.diff(first, append=len(sorted_group))
    return np.arange(len(sorted_group)) - np.repeat(first, sizes)


def check_numbers(detections: Detections) -> None:
    """Raises UserError for scores and boxes that are not finite; warns of negative sides."""
    for name, column in (("scores", detections.scores), ("boxes", detections.boxes)):
        if not np.isfinite([column.min(initial=0), column.max(initial=0)]).all():
            finite = np.isfinite(column).reshape(len(column), -1).all(axis=1)
            row = int(finite.argmin())
            raise UserError(
                f"expected finite {name}, detection {row} (image {detections.image_ids[row]}) has "
                f"{column[row]}: the model may have diverged, look at its training loss"
            )
    sides = detections.boxes[:, 2:]
    if sides.min(initial=0) < 0:
        negative = np.flatnonzero((sides < 0).any(axis=1))
        logger.warning(
            "%d boxes have a negative width or height (the first is that of detection %d): as in "
            "the official API they match nothing. Boxes are (x, y, width, height).",
            *(len(negative), negative[0]),
        )


def detection_masks(detections: Detections) -> RunLengthMasks:
    """The masks; nobody can tell whether no detections had some."""
    return RunLengthMasks.empty() if detections.masks is None else detections.masks
