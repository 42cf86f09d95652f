"""The boundary of masks, for boundary AP (https://arxiv.org/abs/2103.16562)."""

import numpy as np

from ..data import run_lengths
from .masks import RunLengthMasks

_MASKS_AT_ONCE = 1 << 10


def boundaries(masks: RunLengthMasks, dilation: float = 0.02) -> RunLengthMasks:
    """
    The pixels of masks that are near to what is not mask; outside the image nothing is.

    They remain when the mask is eroded, by a square of (2 d + 1) x (2 d + 1) pixels, and the rest
    is taken away.

    Args:
        masks: N masks.
        dilation: d as a share of the diagonal of the image; at least one pixel.
    """
    parts = []
    for first in range(0, len(masks), _MASKS_AT_ONCE):
        rows = np.arange(first, min(first + _MASKS_AT_ONCE, len(masks)))
        parts.append(_boundaries(masks.take(rows).compact(), dilation))
    return RunLengthMasks.concatenate(parts)


def _boundaries(masks: RunLengthMasks, dilation: float) -> RunLengthMasks:
    sizes = masks.sizes.astype(np.int64)
    distance = np.rint(dilation * np.sqrt((sizes**2).sum(axis=1))).astype(np.int64).clip(min=1)
    runs, num_runs = run_lengths.decode(masks.counts, masks.lengths)
    boxes = masks.boxes().astype(np.int64)
    windows = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    bits = []
    of_masks = np.split(runs, np.cumsum(num_runs)[:-1])
    for of_mask, (left, top, right, bottom), height, d in zip(
        of_masks, windows.tolist(), sizes[:, 0].tolist(), distance.tolist()
    ):
        mask = run_lengths.to_window(of_mask, height, left, right)[:, top:bottom].astype(bool)
        inner = _all_near(_all_near(mask, d).T, d).T
        columns = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=np.uint8)
        columns[:, :-1] = mask & ~inner
        bits.append(columns.ravel())
    return RunLengthMasks.from_windows(np.concatenate(bits), windows, masks.sizes)


def _all_near(mask: np.ndarray, distance: int) -> np.ndarray:
    """Which elements have only ones up to a distance along the last axis; beyond it are zeros."""
    size = 2 * distance + 1
    length = mask.shape[1]
    if length < size:
        return np.zeros_like(mask)
    total = np.zeros((mask.shape[0], length + 1), dtype=np.int32)
    np.cumsum(mask, axis=1, out=total[:, 1:])
    found = np.zeros_like(mask)
    found[:, distance : length - distance] = total[:, size:] - total[:, :-size] == size
    return found
