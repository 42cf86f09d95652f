"""Whether an exported detector finds what the original does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ExportError
from ..progress import track
from .formats import Runner

TOLERANCE = 1e-4
"""Of scores, of masks, and of boxes as a share of the image's longer side."""

BORDERLINE, BORDERLINE_SHARE = 0.01, 0.1
"""
Detections within 1 % of the lowest score are in or out by rounding: not compared, unless they are
more than a tenth of all.
"""


@dataclass(frozen=True)
class Difference:
    """
    Two lists of detections of one image, compared whatever their order.

    Attributes:
        size: height and width of the image.
        detections: how many the original has.
        exported: how many the exported detector has.
        scores: largest difference of a score and that of its counterpart: the detection of the same
            class in the other list that is most alike.
        boxes: the same of box coordinates, in pixels.
        masks: the same of mask probabilities; 0 without masks.
        relative: the largest of the three, boxes as a share of the image's longer side; infinite
            if a detection, other than the lowest scored ones, has no counterpart at all.
    """

    size: tuple[int, int]
    detections: int
    exported: int
    scores: float
    boxes: float
    masks: float
    relative: float


def compare(
    original: Runner,
    exported: Runner,
    images: Sequence[Tensor],
    *,
    tolerance: float = TOLERANCE,
) -> list[Difference]:
    """
    Run both on every image.

    Raises:
        ExportError: they differ by more than ``tolerance``, or none of the images has a detection.
    """
    differences = [
        difference(original(image), exported(image), tuple(image.shape[-2:]))
        for image in track(images, "comparing")
    ]
    if not any(image.detections for image in differences):
        raise ExportError(
            "the detector finds nothing on the images to compare, which shows nothing: give images "
            "with objects (--images), or a lower SCORE_THRESH_TEST"
        )
    failed = [image for image in differences if not image.relative <= tolerance]  # nan, too
    if failed:
        worst = max(failed, key=lambda image: image.relative)
        raise ExportError(
            f"the exported detector differs from the original by {worst.relative:.2g} on an image "
            f"of {worst.size[0]} x {worst.size[1]} ({worst.detections} detections, exported "
            f"{worst.exported}), and {tolerance:g} is allowed: do not use it; --tolerance sets "
            "another limit"
        )
    return differences


def difference(
    original: Sequence[Tensor], exported: Sequence[Tensor], size: tuple[int, int]
) -> Difference:
    """
    Compare detections of one image.

    Args:
        original: boxes (D, 4), scores (D,), classes (D,) and maybe masks (D, M, M).
        exported: the same of E detections.
        size: height and width of the image.
    """
    first, second = ([part.cpu() for part in parts] for parts in (original, exported))
    numbers = len(first[1]), len(second[1])
    if 0 in numbers:
        relative = 0.0 if numbers == (0, 0) else float("inf")
        return Difference(size, *numbers, 0.0, 0.0, 0.0, relative)
    boxes = (first[0][:, None] - second[0][None]).abs().amax(dim=2)  # (D, E)
    scores = (first[1][:, None] - second[1][None]).abs()
    cost = torch.maximum(boxes / max(size), scores)
    cost = cost.masked_fill(first[2][:, None] != second[2][None], torch.inf)
    lowest = min(first[1].min(), second[1].min())
    own = (
        (torch.arange(numbers[0]), cost.argmin(dim=1)),
        (cost.argmin(dim=0), torch.arange(numbers[1])),
    )
    counts = [_is_certain(part[1], lowest) for part in (first, second)]
    rows, columns = (torch.cat([match[i][c] for match, c in zip(own, counts)]) for i in (0, 1))
    of_scores, of_boxes, relative = (
        float(table[rows, columns].max()) for table in (scores, boxes, cost)
    )
    of_masks = 0.0
    if len(first) > 3:
        of_masks = float((first[3][rows] - second[3][columns]).abs().max())
        relative = float("nan") if math.isnan(of_masks) else max(relative, of_masks)
    return Difference(size, *numbers, of_scores, of_boxes, of_masks, relative)


def _is_certain(scores: Tensor, lowest: Tensor) -> Tensor:
    """(D,) whether a detection must be in both lists; a few of the lowest score need not."""
    is_certain = scores > lowest * (1 + BORDERLINE)
    too_many = (~is_certain).sum() > BORDERLINE_SHARE * len(scores)
    return is_certain | too_many
