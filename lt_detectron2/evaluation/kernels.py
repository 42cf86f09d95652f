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
    def call(*arguments: np.ndarray) -> Any:
        return compile_it()(*arguments)

    return call


@_compiled
def assign(
    annotated: np.ndarray,
    ious: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    thresholds: np.ndarray,
    counts: np.ndarray,
    crowd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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

    Returns:
        matched and right, each (C, T, A) bool, and taken, (G, T, A) bool.
    """
    shape = (len(first), len(thresholds), counts.shape[1])
    taken = np.zeros((counts.shape[0], shape[1], shape[2]), dtype=np.bool_)
    matched = np.zeros(shape, dtype=np.bool_)
    right = np.zeros(shape, dtype=np.bool_)
    for candidate in range(len(first)):
        begin = first[candidate]
        end = begin + count[candidate]
        for threshold in range(shape[1]):
            for area in range(shape[2]):
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
    return matched, right, taken


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
