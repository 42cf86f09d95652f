"""Which annotations a detection overlaps enough to match, by boxes, masks or boundaries."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..progress import counter
from . import kernels
from .annotations import POSITIVE
from .boundary import boundaries
from .detections import Detections
from .ground_truth import GroundTruth
from .masks import mask_pair_ious
from .selection import Selection, detection_masks

_PAIRS_PER_CHUNK = 1 << 16


class Options(NamedTuple):
    """
    What detections can choose from: annotations of their cell whose IoU reaches a threshold.

    Args:
        detected: (C,) int64, ascending places in the `Selection` of those that have a choice.
        first: (C,) int64, the first option of each of them.
        count: (C,) int64, how many it has, one after the other.
        annotated: (P,) int64, annotation of each option; those of a detection rise by IoU, then in
            the order of the annotation file, so that the last one is the best.
        ious: (P,) float64.
    """

    detected: np.ndarray
    first: np.ndarray
    count: np.ndarray
    annotated: np.ndarray
    ious: np.ndarray


def options(
    ground_truth: GroundTruth,
    detections: Detections,
    selection: Selection,
    iou_type: str,
    lowest: float,
    boundary_dilation: float,
) -> Options:
    """
    Compares each selected detection with the annotations of its cell.

    Args:
        iou_type: "bbox", "segm" or "boundary".
        lowest: the IoU from which an annotation is an option.
        boundary_dilation: width of boundaries as a share of the image's diagonal.
    """
    rows, image, category = selection.rows, selection.image, selection.category
    if iou_type == "bbox" and kernels.available():
        starts = np.searchsorted(ground_truth.image, np.arange(ground_truth.num_images + 1))
        annotations = starts, ground_truth.category, ground_truth.boxes, ground_truth.crowd
        found = kernels.box_options(detections.boxes, rows, image, category, *annotations, lowest)
        return Options(*found)

    positive = np.flatnonzero(ground_truth.cell_flags[image, category] & POSITIVE)
    keys, first_annotation, num_annotations = ground_truth.cells
    cell = np.searchsorted(keys, ground_truth.cell_keys(image[positive], category[positive]))
    first, count = first_annotation[cell], num_annotations[cell]
    if iou_type == "bbox":
        boxes = detections.boxes[rows[positive]].astype(np.float64)
        pair_ious = box_ious(boxes, ground_truth.boxes, ground_truth.crowd)
    else:
        pair_ious = _mask_ious(ground_truth, detections, rows[positive], lowest)
    detected, annotated, ious = _pairs(first, count, pair_ious, lowest, iou_type)
    if iou_type == "boundary":
        ious = _with_boundaries(
            ground_truth, detections, rows[positive], (detected, annotated, ious), boundary_dilation
        )
    order = np.lexsort((annotated, ious, detected))
    detected, first, count = np.unique(detected, return_index=True, return_counts=True)
    return Options(positive[detected], first, count, annotated[order], ious[order])


PairIous = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Takes pairs; returns those that may reach the lowest threshold and their IoU."""


def _pairs(
    first: np.ndarray, count: np.ndarray, pair_ious: "PairIous", lowest: float, iou_type: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Pairs of a detection and an annotation of its cell whose IoU reaches the lowest threshold.

    Args:
        first: (N,), first annotation of the cell of each detection.
        count: (N,), how many it has.

    Returns:
        detections, annotations, and IoUs, each (P,), sorted by the first two.
    """
    found = []
    ends = np.cumsum(count)
    start = 0
    progress = counter(f"matching by {iou_type}", unit="detections", total=len(count))
    while start < len(count):
        taken = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, taken + _PAIRS_PER_CHUNK, side="right")))
        number = count[start:stop]
        detected = np.repeat(np.arange(start, stop), number)
        shift = first[start:stop] - (ends[start:stop] - number - taken)
        annotated = np.arange(len(detected)) + np.repeat(shift, number)
        detected, annotated, ious = pair_ious(detected, annotated)
        enough = ious >= lowest
        found.append((detected[enough], annotated[enough], ious[enough]))
        progress.update(stop - start)
        start = stop
    progress.close()
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    return tuple(np.concatenate(column) for column in zip(*found))


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
) -> np.ndarray:
    """The lesser of the IoUs of masks and of boundaries of each pair; crowds have no boundaries."""
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
    return np.where(ground_truth.crowd[annotated], ious, np.minimum(ious, boundary_ious))
