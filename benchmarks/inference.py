"""
From logits to run lengths of one image at the size of LVIS, stage by stage, against Detectron2.

1,000 proposals, 1,203 classes, 300 detections, 800 x 1,333 pixels, boxes of each class. Logits are
"initial", where a sigmoid head with its prior leaves every score above the threshold of 1e-4, or
"trained", where one class in about forty does and proposals cluster on objects. Both sides get the
same tensors; results are compared bit for bit, masks letter by letter.

    activation   logits to scores
    boxes        deltas to boxes: all of them, and those of the final detections
    detections   deltas and scores to detections: decoding, threshold, NMS, cap
    masks        28 x 28 masks to run lengths: pasting, encoding
    image        all of it
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import fast_rcnn as detectron2
from torch import Tensor

from benchmarks.harness import DEVICE, Case, Contest, Target, main
from benchmarks.masks import blobs, encode, encode_with_detectron2
from lt_detectron2.losses import SigmoidCrossEntropyLoss, SoftmaxCrossEntropyLoss
from lt_detectron2.modeling import postprocess

REGIONS, CLASSES, DETECTIONS = 1000, 1203, 300
HEIGHT, WIDTH = 800, 1333
SCORE_THRESHOLD, NMS_THRESHOLD = 1e-4, 0.5
STAGES = ("activation", "boxes", "detections", "masks", "image")


def set_up(stage: str, logits: str) -> Contest:
    """A stage by this package and by Detectron2's functions; ``logits`` as above."""
    make = {
        "activation": activation,
        "boxes": boxes,
        "detections": detections,
        "masks": masks,
        "image": image,
    }[stage]
    candidate, baseline, name = make(*inputs(logits))

    def check() -> float:
        compare(candidate(), baseline())
        return 0.0

    return Contest({name: candidate, "detectron2": baseline}, check, 4 * REGIONS * CLASSES)


def compare(actual: Any, expected: Any) -> None:
    """Raise AssertionError unless all tensors and codes are equal."""
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), "the results differ"
    elif isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for pair in zip(actual, expected):
            compare(*pair)
    else:
        assert actual == expected, "the codes differ"


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (R, K+1), deltas (R, K*4) and proposals (R, 4)."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([WIDTH, HEIGHT])
    if kind == "initial":
        logits = 0.5 * torch.randn(REGIONS, CLASSES + 1, generator=generator) - 6.9
        centres = torch.rand(REGIONS, 2, generator=generator) * size
        sides = 20 + 200 * torch.rand(REGIONS, 2, generator=generator)
        scale = 1.0
    else:
        objects = torch.randint(0, 40, (REGIONS,), generator=generator)
        of_object = torch.randint(0, CLASSES, (40,), generator=generator)
        logits = 1.6 * torch.randn(REGIONS, CLASSES + 1, generator=generator) - 12.5
        rows = torch.arange(REGIONS)
        logits[rows, of_object[objects]] += 10 * torch.rand(REGIONS, generator=generator)
        centres = (torch.rand(40, 2, generator=generator) * size)[objects]
        centres += 8 * torch.randn(REGIONS, 2, generator=generator)
        sides = (30 + 200 * torch.rand(40, 2, generator=generator))[objects]
        scale = 0.3
    proposals = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    deltas = scale * torch.randn(REGIONS, 4 * CLASSES, generator=generator)
    return logits.to(DEVICE), deltas.to(DEVICE), proposals.to(DEVICE)


Pair = tuple[Callable[[], Any], Callable[[], Any], str]
TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def activation(logits: Tensor, deltas: Tensor, proposals: Tensor) -> Pair:
    """Of a softmax, where both do the same; a sigmoid is compared with torch's own."""
    loss = SoftmaxCrossEntropyLoss(CLASSES)
    return lambda: loss.scores(logits), lambda: F.softmax(logits, dim=-1), "scores"


def boxes(logits: Tensor, deltas: Tensor, proposals: Tensor) -> Pair:
    generator = torch.Generator().manual_seed(1)
    flat = torch.randperm(REGIONS * CLASSES, generator=generator)[:DETECTIONS].to(DEVICE)
    regions, classes = flat // CLASSES, flat % CLASSES
    lazy = postprocess.RegionBoxes(deltas, proposals, TRANSFORM)

    def baseline() -> Tensor:
        decoded = TRANSFORM.apply_deltas(deltas, proposals)
        return decoded.unflatten(1, (-1, 4))[regions, classes]

    return lambda: lazy.of(regions, classes), baseline, "RegionBoxes"


def detections(logits: Tensor, deltas: Tensor, proposals: Tensor) -> Pair:
    scores = SigmoidCrossEntropyLoss(CLASSES).scores(logits[:, :CLASSES])
    return (
        lambda: detect(deltas, proposals, scores),
        lambda: detect_with_detectron2(deltas, proposals, scores),
        "fast_rcnn_inference",
    )


def detect(deltas: Tensor, proposals: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    lazy = postprocess.RegionBoxes(deltas, proposals, TRANSFORM)
    return _detect(postprocess.fast_rcnn_inference, lazy, scores)


def detect_with_detectron2(deltas: Tensor, proposals: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    return _detect(
        detectron2.fast_rcnn_inference, TRANSFORM.apply_deltas(deltas, proposals), scores
    )


def _detect(function: Callable, of_regions: Any, scores: Tensor) -> tuple[Tensor, ...]:
    (found,), (regions,) = function(
        *([of_regions], [scores], [(HEIGHT, WIDTH)], SCORE_THRESHOLD, NMS_THRESHOLD, DETECTIONS)
    )
    return found.pred_boxes.tensor, found.scores, found.pred_classes, regions


def masks(logits: Tensor, deltas: Tensor, proposals: Tensor) -> Pair:
    probabilities, corners = (t.to(DEVICE) for t in blobs(DETECTIONS, HEIGHT, WIDTH))
    return (
        lambda: encode(probabilities, corners, HEIGHT, WIDTH),
        lambda: encode_with_detectron2(probabilities, corners, HEIGHT, WIDTH),
        "encode_roi_masks",
    )


def image(logits: Tensor, deltas: Tensor, proposals: Tensor) -> Pair:
    probabilities, _ = (t.to(DEVICE) for t in blobs(DETECTIONS, HEIGHT, WIDTH))
    loss = SigmoidCrossEntropyLoss(CLASSES)

    def candidate() -> tuple:
        found = detect(deltas, proposals, loss.scores(logits[:, :CLASSES]))
        return (*found, encode(probabilities[: len(found[0])], found[0], HEIGHT, WIDTH))

    def baseline() -> tuple:
        scores = F.pad(logits[:, :CLASSES].sigmoid(), (0, 1))
        found = detect_with_detectron2(deltas, proposals, scores)
        own = probabilities[: len(found[0])]
        return (*found, encode_with_detectron2(own, found[0], HEIGHT, WIDTH))

    return candidate, baseline, "lt_detectron2"


def targets(case: Case) -> list[Target]:
    """Nothing is slower; the whole image is several times faster."""
    if case.sizes["stage"] == "activation":
        return [Target("detectron2", at_most=1.5)]  # a tenth of a millisecond of checks
    return [Target("detectron2", at_least=2.0 if case.sizes["stage"] == "image" else 1.0)]


CASES = [
    Case(f"{stage}, {logits} logits", set_up, {"stage": stage, "logits": logits})
    for logits in ("trained", "initial")
    for stage in STAGES
    if logits == "trained" or stage in ("detections", "image")
]

if __name__ == "__main__":
    sys.exit(main("inference", CASES, targets))
