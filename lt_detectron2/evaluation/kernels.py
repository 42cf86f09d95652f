"""
The slowest loops of an evaluation, compiled, where numba is installed (`pip install numba`).

Without it NumPy and torch give the same bits. The environment variable LT_DETECTRON2_NUMBA=0
switches the kernels off. They are compiled at first use, in some seconds, and kept on disk.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

EPSILON = np.spacing(1)
"""Of the official APIs, in the denominator of precision."""


def available() -> bool:
    """Whether kernels can be used; nothing is imported for the answer."""
    wanted = os.environ.get("LT_DETECTRON2_NUMBA", "1") != "0"
    return wanted and importlib.util.find_spec("numba") is not None


def _compiled(function: Callable) -> Callable:
    """Compiles at the first call, not at import: loading numba takes longer than many metrics."""

    @functools.cache
    def compile_it() -> Callable:
        import numba

        # Without fastmath: the order of operations decides about the last bit. Without the GIL, so
        # that threads encode masks beside inference.
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)

    @functools.wraps(function)
    def call(*arguments: np.ndarray | float) -> Any:
        return compile_it()(*arguments)

    return call


@_compiled
def box_options(
    boxes: np.ndarray,
    rows: np.ndarray,
    image: np.ndarray,
    category: np.ndarray,
    starts: np.ndarray,
    annotated_category: np.ndarray,
    annotated_boxes: np.ndarray,
    crowd: np.ndarray,
    lowest: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Annotations that overlap a detection, in the operations and order of `overlaps.box_ious`.

    Args:
        boxes: (M, 4) float, x, y, width, height.
        rows: (N,) int64, the boxes that count.
        image: (N,) int64, their images.
        category: (N,) int64, their categories.
        starts: (I + 1,) int64, the first annotation of each image.
        annotated_category: (G,) int64, rising in each image.
        annotated_boxes: (G, 4) float64.
        crowd: (G,) bool, whether the union is the detection alone.
        lowest: the IoU from which an annotation is an option.

    Returns:
        The fields of `overlaps.Options`.
    """
    detected = np.empty(len(rows), dtype=np.int64)
    first = np.empty(len(rows), dtype=np.int64)
    count = np.empty(len(rows), dtype=np.int64)
    annotated = np.empty(len(rows), dtype=np.int64)
    ious = np.empty(len(rows), dtype=np.float64)
    candidates, end = 0, 0
    for number in range(len(rows)):
        row, begin = rows[number], end
        x, y = np.float64(boxes[row, 0]), np.float64(boxes[row, 1])
        width, height = np.float64(boxes[row, 2]), np.float64(boxes[row, 3])
        right, bottom, area = width + x, height + y, width * height
        for other in range(starts[image[number]], starts[image[number] + 1]):
            if annotated_category[other] < category[number]:
                continue
            if annotated_category[other] > category[number]:
                break
            x_g, y_g, width_g, height_g = annotated_boxes[other]
            across = min(right, width_g + x_g) - max(x, x_g)
            down = min(bottom, height_g + y_g) - max(y, y_g)
            iou = 0.0
            if across > 0 and down > 0:
                intersection = across * down
                union = area if crowd[other] else area + width_g * height_g - intersection
                iou = intersection / union
            if iou < lowest:
                continue
            if end == len(ious):
                annotated = np.concatenate((annotated, np.empty_like(annotated)))
                ious = np.concatenate((ious, np.empty_like(ious)))
            place = end
            while place > begin and ious[place - 1] > iou:
                annotated[place], ious[place] = annotated[place - 1], ious[place - 1]
                place -= 1
            annotated[place], ious[place] = other, iou
            end += 1
        if end > begin:
            detected[candidates], first[candidates] = number, begin
            count[candidates] = end - begin
            candidates += 1
    detected, first, count = detected[:candidates], first[:candidates], count[:candidates]
    return detected, first, count, annotated[:end], ious[:end]


@_compiled
def assign(
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
    """
    Lets candidates choose one after the other; see `matching.match` for the rule.

    Args:
        annotated: (P,) int64, annotation of each pair, the worst choice of a candidate first.
        ious: (P,) float64.
        first: (C,) int64, first pair of each candidate.
        count: (C,) int64, its pairs.
        thresholds: (T,) float64, rising.
        counts: (G, A) bool, whether an annotation counts in an area range.
        crowd: (G,) bool, whether it can be taken more than once.
        matched: (C, T, A) bool, all False; what comes out is written here,
        right: as `matched`,
        taken: (G, T, A) bool, likewise.
    """
    for candidate in range(len(first)):
        begin = first[candidate]
        end = begin + count[candidate]
        for threshold in range(len(thresholds)):
            for area in range(counts.shape[1]):
                choice = -1
                for pair in range(end - 1, begin - 1, -1):
                    if ious[pair] < thresholds[threshold]:
                        break
                    option = annotated[pair]
                    if taken[option, threshold, area]:
                        continue
                    if counts[option, area]:
                        choice = option
                        right[candidate, threshold, area] = True
                        break
                    if choice < 0:
                        choice = option
                if choice >= 0:
                    matched[candidate, threshold, area] = True
                    taken[choice, threshold, area] = not crowd[choice]


@_compiled
def curves(
    offsets: np.ndarray,
    errs_unmatched: np.ndarray,
    candidates: np.ndarray,
    matched: np.ndarray,
    right: np.ndarray,
    num_annotations: np.ndarray,
    recalls: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Precision and recall of every category, row by row; the arguments are fields of `Matches`.

    Args:
        recalls: (R,) float64, thresholds, rising from 0.

    Returns:
        precision (T, R, K, A), the best at the recall or beyond, and recall (T, K, A); nan where a
        category has no annotations.
    """
    num_thresholds, num_areas = matched.shape[1:]
    shape = (num_thresholds, len(recalls), len(num_annotations), num_areas)
    precision = np.full(shape, np.nan)
    recall = np.full((shape[0], shape[2], shape[3]), np.nan)
    errs = np.empty(num_areas, dtype=np.int64)
    spared = np.empty((num_thresholds, num_areas), dtype=np.int64)
    true = np.empty_like(spared)
    reached = np.empty_like(spared)
    best = np.empty((num_thresholds, len(recalls), num_areas))
    candidate = 0
    for category in range(len(num_annotations)):
        errs[:], spared[:], true[:], reached[:], best[:] = 0, 0, 0, 0, 0
        for row in range(offsets[category], offsets[category + 1]):
            if candidate < len(candidates) and candidates[candidate] == row:
                for threshold in range(num_thresholds):
                    for area in range(num_areas):
                        if right[candidate, threshold, area]:
                            true[threshold, area] += 1
                            hits, bin = true[threshold, area], reached[threshold, area]
                            share = hits / num_annotations[category, area]
                            while bin + 1 < len(recalls) and recalls[bin + 1] <= share:
                                bin += 1
                            false = errs[area] - spared[threshold, area]
                            value = hits / (false + hits + EPSILON)
                            best[threshold, bin, area] = max(best[threshold, bin, area], value)
                            reached[threshold, area] = bin
                        if matched[candidate, threshold, area]:
                            spared[threshold, area] += errs_unmatched[row, area]
                candidate += 1
            for area in range(num_areas):
                errs[area] += errs_unmatched[row, area]
        for area in range(num_areas):
            number = num_annotations[category, area]
            if number == 0:
                continue
            for threshold in range(num_thresholds):
                recall[threshold, category, area] = true[threshold, area] / number
                envelope = 0.0
                for bin in range(len(recalls) - 1, -1, -1):
                    envelope = max(envelope, best[threshold, bin, area])
                    precision[threshold, bin, category, area] = envelope
    return precision, recall


@_compiled
def pasted_edges(masks: np.ndarray, x: np.ndarray, y: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """
    Samples small masks at the pixels of their windows, in the order of torch's grid_sample.

    Args:
        masks: (N, M, M) float32.
        x: (X,) float32, columns of all windows as places in their mask, which spans -1..1.
        y: (Y,) float32, rows of all windows likewise.
        sizes: (N, 2) int64, columns and rows of each window.

    Returns:
        (E,) int64, where mask begins or ends, as `run_lengths.from_edges` takes them.
    """
    size = masks.shape[1]
    half, one = np.float32(0.5), np.float32(1)
    scale = np.float32(size) * half
    tops = np.empty(max(1, sizes[:, 1].max()), dtype=np.int64)
    shares = np.empty(len(tops), dtype=np.float32)
    padded = np.zeros((size + 4, size + 4), dtype=np.float32)  # what lies outside is zero
    edges = np.empty(1024, dtype=np.int64)
    found, first_x, first_y, start = 0, 0, 0, 0
    for number in range(len(masks)):
        columns, rows = sizes[number]
        padded[2:-2, 2:-2] = masks[number]
        for row in range(rows):
            place = (y[first_y + row] + one) * scale - half
            floor = np.floor(place)
            tops[row] = min(max(int(floor) + 2, 0), size + 2)
            shares[row] = place - floor
        for column in range(columns):
            place = (x[first_x + column] + one) * scale - half
            floor = np.floor(place)
            left = min(max(int(floor) + 2, 0), size + 2)
            to_east = place - floor
            to_west = one - to_east
            if found + rows + 1 > len(edges):
                larger = np.empty(2 * len(edges) + rows, dtype=np.int64)
                larger[:found] = edges[:found]
                edges = larger
            is_inside = False
            for row in range(rows):
                top, to_south = tops[row], shares[row]
                to_north = one - to_south
                sample = padded[top, left] * (to_west * to_north)
                sample += padded[top, left + 1] * (to_east * to_north)
                sample += padded[top + 1, left] * (to_west * to_south)
                sample += padded[top + 1, left + 1] * (to_east * to_south)
                if (sample >= half) != is_inside:
                    is_inside = not is_inside
                    edges[found] = start + row
                    found += 1
            if is_inside:
                edges[found] = start + rows
                found += 1
            start += rows + 1
        first_x += columns
        first_y += rows
    return edges[:found]
