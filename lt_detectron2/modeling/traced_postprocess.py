"""
NMS of a detector that is being traced, for TorchScript and ONNX: the detections of the eager one.

A trace keeps the operations that one image needed. The eager code decides by the number of
candidates how many to look at, and how to go through classes; here these decisions are part of what
is recorded. Classes are kept apart by moving each to a place of its own, as torchvision does. It
lines them up, so that coordinates of the last of 1203 classes are only exact to 1/8 of a pixel in
float32; here the places fill a square, and TorchScript computes in float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision.nms)
from torch import Tensor

GROWTH = 4
"""By how much the number of candidates grows where too few of them survive."""


def traced_survivors(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    image_shape: tuple[Any, Any],
    num_classes: int,
    nms_thresh: float,
    topk: int,
    first_candidates: int,
) -> Tensor:
    """
    Indices of the first ``topk`` survivors of NMS within classes, best score first.

    Args:
        boxes: (N, 4) of the candidates, clipped to the image.
        scores: (N,).
        classes: (N,), 0..K-1.
        image_shape: height and width of the image, recorded tensors.
        num_classes: K.
        nms_thresh: IoU above which the lower-scored box of a class is dropped.
        topk: negative keeps all.
        first_candidates: how many to look at first.
    """
    apart = boxes.double() + _places(classes, image_shape, num_classes)
    if torch.onnx.is_in_onnx_export():
        return _LimitedNMS.apply(apart.float(), scores, nms_thresh, topk)
    return _first_survivors(apart, scores.double(), nms_thresh, topk, first_candidates, GROWTH)


def _places(classes: Tensor, image_shape: tuple[Any, Any], num_classes: int) -> Tensor:
    """(N, 4) offset of a box by its class: images in the fields of a square."""
    height, width = (torch.as_tensor(side, device=classes.device) for side in image_shape)
    columns = math.ceil(math.sqrt(num_classes))
    field = torch.stack([classes % columns, classes.div(columns, rounding_mode="floor")], dim=1)
    return (field * (torch.maximum(height, width) + 1)).repeat(1, 2)


@torch.jit.script_if_tracing
def _first_survivors(
    boxes: Tensor, scores: Tensor, nms_thresh: float, topk: int, candidates: int, growth: int
) -> Tensor:
    # Compiled, not recorded: the loop runs as often as an image needs.
    order = scores.argsort(stable=True, dim=0, descending=True)
    boxes, scores = boxes[order], scores[order]
    if topk < 0:
        return order[torch.ops.torchvision.nms(boxes, scores, nms_thresh)]
    kept = torch.ops.torchvision.nms(boxes[:candidates], scores[:candidates], nms_thresh)
    while kept.shape[0] < topk and candidates < scores.shape[0]:
        candidates = candidates * growth
        kept = torch.ops.torchvision.nms(boxes[:candidates], scores[:candidates], nms_thresh)
    return order[kept[:topk]]


class _LimitedNMS(torch.autograd.Function):
    """NMS whose ONNX operator stops at the ``topk``-th survivor by itself."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, nms_thresh: float, topk: int) -> Tensor:
        kept = torch.ops.torchvision.nms(boxes, scores, nms_thresh)
        return kept if topk < 0 else kept[:topk]

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, nms_thresh: float, topk: int) -> Any:
        def constant(value: Any, dtype: torch.dtype) -> Any:
            return g.op("Constant", value_t=torch.tensor([value], dtype=dtype))

        axes = constant(0, torch.int64)
        limit = torch.iinfo(torch.int64).max if topk < 0 else topk
        chosen = g.op(  # (D, 3): image, class, index
            "NonMaxSuppression",
            g.op("Unsqueeze", boxes, axes),
            g.op("Unsqueeze", scores, g.op("Constant", value_t=torch.tensor([0, 1]))),
            constant(limit, torch.int64),
            constant(nms_thresh, torch.float32),
        )
        index = g.op("Gather", chosen, constant(2, torch.int64), axis_i=1)
        return g.op("Squeeze", index, constant(1, torch.int64))
