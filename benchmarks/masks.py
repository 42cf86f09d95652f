"""
From the mask head's 28 x 28 masks to COCO's run lengths: an image of 640 x 480, 300 detections.

The baseline is what Detectron2 does: paste every mask into an image of its own, on the masks'
device, then encode one after the other with pycocotools. The codes are compared letter by letter.
Where numba is installed, the kernels are compiled, and the cases are named so.
"""

from __future__ import annotations

import functools
import sys

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.layers import paste_masks_in_image
from torch import Tensor

from benchmarks.harness import DEVICE, Case, Contest, Target, main
from lt_detectron2.evaluation import kernels
from lt_detectron2.evaluation.pasting import encode_roi_masks

HEIGHT, WIDTH = 480, 640
DETECTIONS = (100, 300)
MASK_SIZE = 28


def set_up(detections: int) -> Contest:
    """Blobs with wavy outlines in boxes of about 9,800 square pixels."""
    image = (*(tensor.to(DEVICE) for tensor in blobs(detections)), HEIGHT, WIDTH)
    candidate = functools.partial(encode, *image)
    baseline = functools.partial(encode_with_detectron2, *image)

    def check() -> float:
        assert candidate() == baseline(), "the codes differ"
        return 0.0

    return Contest(
        {"encode_roi_masks": candidate, "detectron2": baseline}, check, detections * HEIGHT * WIDTH
    )


def encode(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[bytes]:
    """Run lengths of masks (N, 28, 28) in an image, by this package."""
    return [rle["counts"] for rle in encode_roi_masks(masks, boxes, height, width).rles()]


def encode_with_detectron2(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[bytes]:
    """The same by Detectron2 and pycocotools."""
    pasted = paste_masks_in_image(masks, boxes, (height, width)).cpu().numpy()
    return [
        coco_mask.encode(np.array(mask[:, :, None], order="F", dtype=np.uint8))[0]["counts"]
        for mask in pasted
    ]


def blobs(number: int, height: int = HEIGHT, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Masks (N, 28, 28), probabilities, and boxes (N, 4) in an image."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.exp(torch.randn(number, 2, generator=generator) + 4.1).clip(2, 600)
    size = torch.tensor([width, height])
    sides = torch.minimum(sides, size)
    corners = torch.rand(number, 2, generator=generator) * (size - sides)
    axis = torch.linspace(-1, 1, MASK_SIZE)
    waves = torch.randn(number, 1, 5, 5, generator=generator)
    waves = torch.nn.functional.interpolate(waves, (MASK_SIZE, MASK_SIZE), mode="bilinear")[:, 0]
    masks = torch.sigmoid(6 * (1 - axis**2 - axis[:, None] ** 2 + 0.6 * waves))
    return masks, torch.cat([corners, corners + sides], dim=1)


COMPILED = ", compiled" if kernels.available() else ""
CASES = [
    Case(f"{number} detections{COMPILED}", set_up, {"detections": number}) for number in DETECTIONS
]

if __name__ == "__main__":
    sys.exit(main("masks", CASES, lambda case: [Target("detectron2", at_least=3)]))
