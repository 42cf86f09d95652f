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
    rows = np.arange(len(detections))
    if np.any(image[1:] < image[:-1]):
        rows = np.argsort(image, kind="stable")
        image = image[rows]
    scores, category_ids = detections.scores, detections.category_ids
    dropped = {}

    def keep(kept: np.ndarray, why: str, *columns: np.ndarray) -> list[np.ndarray]:
        dropped[why] = len(kept) - int(np.count_nonzero(kept))
        return list(columns) if kept.all() else [column[kept] for column in columns]

    kept = best_of_each(image, scores[rows], protocol.max_dets_per_image)
    rows, image = keep(kept, "over the cap", rows, image)
    category, known = positions_in(ground_truth.category_ids, category_ids[rows])
    rows, image, category = keep(known, "of unknown categories", rows, image, category)
    if protocol.max_dets_per_category is not None:
        kept = best_of_each(category, scores[rows], protocol.max_dets_per_category)
        rows, image, category = keep(kept, "over the category's cap", rows, image, category)
    verified = (ground_truth.cell_flags[image, category] & VERIFIED) != 0
    rows, image, category = keep(verified, "of unverified categories", rows, image, category)
    if protocol.max_dets_per_cell is not None:
        cell = ground_truth.cell_keys(image, category)
        kept = best_of_each(cell, scores[rows], protocol.max_dets_per_cell)
        rows, image, category = keep(kept, "over the cell's cap", rows, image, category)
    if iou_type == "bbox":
        areas = detections.boxes[rows, 2].astype(np.float64) * detections.boxes[rows, 3]
    else:
        areas = detection_masks(detections).take(rows).areas()
    if not protocol.empty_detections_count:
        has_area = (areas > 0) & (areas < np.inf)
        rows, image, category, areas = keep(has_area, "without area", rows, image, category, areas)
    return Selection(rows, image, category, areas, dropped)


def best_of_each(group: np.ndarray, scores: np.ndarray, cap: int | None) -> np.ndarray:
    """(N,) bool, the `cap` best of each group (an int >= 0); earlier ones of equal score."""
    kept = np.ones(len(group), dtype=bool)
    if cap is None or len(group) <= cap:
        return kept
    crowded = np.flatnonzero(_group_sizes(group) > cap)
    if len(crowded):
        order = crowded[np.lexsort((-scores[crowded], group[crowded]))]
        kept[order[rank_in_runs(group[order]) >= cap]] = False
    return kept


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
        finite = np.isfinite(column)
        if not finite.all():
            row = int(np.flatnonzero(~finite.reshape(len(column), -1).all(axis=1))[0])
            raise UserError(
                f"expected finite {name}, detection {row} (image {detections.image_ids[row]}) has "
                f"{column[row]}: the model may have diverged, look at its training loss"
            )
    negative = (detections.boxes[:, 2:] < 0).any(axis=1)
    if negative.any():
        logger.warning(
            "%d boxes have a negative width or height (the first is that of detection %d): as in "
            "the official API they match nothing. Boxes are (x, y, width, height).",
            np.count_nonzero(negative),
            np.flatnonzero(negative)[0],
        )


def detection_masks(detections: Detections) -> RunLengthMasks:
    """The masks; nobody can tell whether no detections had some."""
    return RunLengthMasks.empty() if detections.masks is None else detections.masks


def _group_sizes(group: np.ndarray) -> np.ndarray:
    """(N,) how many members the group of each element has."""
    if group.max() < 4 * len(group):
        return np.bincount(group)[group]
    _, inverse, sizes = np.unique(group, return_inverse=True, return_counts=True)
    return sizes[inverse]
