"""
From the mask head's small masks to run lengths at the size of the image.

Detectron2 pastes every mask into an image of its own and then encodes all of it. Here a mask is
sampled inside its box only, as Detectron2 does on the CPU, and the run lengths are read off the
boxes of all masks together. The codes are identical. The sampling is compiled if it can be.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..data import run_lengths
from . import kernels
from .masks import RunLengthMasks

THRESHOLD = 0.5


def encode_roi_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> RunLengthMasks:
    """
    Args:
        masks: (N, M, M) float, probabilities inside the boxes.
        boxes: (N, 4) left, top, right, bottom in pixels.
        height: of the image.
        width: of the image.

    Returns:
        N masks of the image's size.
    """
    if not len(masks):
        return RunLengthMasks.empty()
    masks, boxes = masks.detach().float().cpu(), boxes.detach().float().cpu()
    windows = _windows(boxes, height, width)
    sides = windows[:, 2:] - windows[:, :2]
    x = _relative(windows[:, 0], sides[:, 0], boxes[:, 0], boxes[:, 2])
    y = _relative(windows[:, 1], sides[:, 1], boxes[:, 1], boxes[:, 3])
    sizes = np.tile(np.array([[height, width]], dtype=np.int32), (len(masks), 1))
    if kernels.available():
        edges = kernels.pasted_edges(masks.contiguous().numpy(), x.numpy(), y.numpy(), sides)
        return RunLengthMasks.from_runs(*run_lengths.from_edges(edges, windows, sizes), sizes)
    bits = _paste(masks, x, y, sides)
    return RunLengthMasks.from_windows(bits, windows, sizes)


def _windows(boxes: Tensor, height: int, width: int) -> np.ndarray:
    """(N, 4) int64, the pixels that Detectron2 samples for each box: left, top, right, bottom."""
    low = (boxes[:, :2].floor() - 1).clamp(min=0)
    high = torch.minimum(boxes[:, 2:].ceil() + 1, torch.tensor([width, height]))
    return torch.cat([low, torch.maximum(low, high)], dim=1).to(torch.int64).numpy()


def _paste(masks: Tensor, x: Tensor, y: Tensor, sides: np.ndarray) -> np.ndarray:
    """(B,) uint8, the windows of all masks as `run_lengths.from_windows` takes them."""
    bits = np.zeros((sides[:, 0] * (sides[:, 1] + 1)).sum(), dtype=np.uint8)
    columns, rows = sides.T.tolist()
    start = 0
    for mask, across, down in zip(masks[:, None, None], x.split(columns), y.split(rows)):
        w, h = len(across), len(down)
        stop = start + w * (h + 1)
        if w and h:
            grid = torch.empty(1, h, w, 2)
            grid[..., 0] = across
            grid[..., 1] = down[:, None]
            sampled = grid_sample(mask, grid, align_corners=False)[0, 0].numpy()
            bits[start:stop].reshape(w, h + 1)[:, :h] = (sampled >= THRESHOLD).T
        start = stop
    return bits


def _relative(low: np.ndarray, sizes: np.ndarray, first: Tensor, last: Tensor) -> Tensor:
    """Centres of the pixels from `low` on of each window in turn, where the box is -1..1."""
    number = torch.from_numpy(sizes)
    starts = number.cumsum(0) - number
    pixels = torch.arange(int(number.sum()))
    pixels -= (starts - torch.from_numpy(low)).repeat_interleave(number)
    first, last = first.repeat_interleave(number), last.repeat_interleave(number)
    return (pixels.float() + 0.5 - first) / (last - first) * 2 - 1
