"""
Detections of an image from its scores, without running NMS over candidates that cannot be kept.

At LVIS settings (1000 proposals, 1203 classes, threshold 1e-4) up to a million boxes pass the score
threshold and Detectron2 runs NMS over all of them to keep 300. NMS is greedy by score: whether a
box survives depends only on boxes before it in the order of scores. So the survivors among the M
best candidates are the first survivors among all, and as soon as they are enough, the rest need
not be looked at: their boxes are not even decoded.

Shapes: R regions of one image, K classes, N candidates, D detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from .traced_postprocess import traced_survivors

EXHAUSTIVE_CANDIDATES = 1000
"""Up to this many candidates there is nothing to gain, and Detectron2's own NMS runs."""

CANDIDATES_PER_DETECTION = 8
"""First guess of how many candidates hold one survivor."""


SAFE_MAGNITUDE = 1e6
"""Deltas and coordinates up to here make finite boxes, whatever their signs."""


class RegionBoxes:
    """
    Boxes of the regions of an image, decoded for the candidates that somebody asks for.

    Args:
        deltas: (R, K*4), or (R, 4) for class-agnostic regression.
        proposals: (R, 4) boxes that the deltas are relative to.
        transform: decodes them; None where ``deltas`` are boxes already.
    """

    def __init__(
        self, deltas: Tensor, proposals: Tensor, transform: Box2BoxTransform | None = None
    ):
        self.deltas = deltas
        self.proposals = proposals
        self.transform = transform

    @classmethod
    def decoded(cls, boxes: Tensor) -> RegionBoxes:
        """Of boxes (R, K*4) or (R, 4)."""
        return cls(boxes, boxes[:, :0])

    def all(self) -> Tensor:
        """(R, K*4) or (R, 4), every box."""
        if self.transform is None:
            return self.deltas
        return self.transform.apply_deltas(self.deltas, self.proposals)

    def of(self, regions: Tensor, classes: Tensor) -> Tensor:
        """(N, 4) boxes of some regions for some classes, both (N,)."""
        if self.deltas.shape[1] == 4:
            chosen = self.deltas[regions]
        else:
            chosen = self.deltas.unflatten(1, (-1, 4))[regions, classes]
        if self.transform is None:
            return chosen
        return self.transform.apply_deltas(chosen, self.proposals[regions])

    def is_finite(self) -> bool:
        """Whether all boxes are finite for sure."""
        limit = float("inf") if self.transform is None else SAFE_MAGNITUDE
        return _is_within(self.deltas, limit) and _is_within(self.proposals, limit)

    def rows(self, regions: Tensor) -> RegionBoxes:
        """Those of some regions, by index or mask."""
        return RegionBoxes(self.deltas[regions], self.proposals[regions], self.transform)

    def to(self, device: torch.device) -> RegionBoxes:
        return RegionBoxes(self.deltas.to(device), self.proposals.to(device), self.transform)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.deltas, self.proposals))


def fast_rcnn_inference(
    boxes: Sequence[Tensor | RegionBoxes],
    scores: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """
    Drop-in replacement of Detectron2's function of this name, with the same result.

    Among detections of equal score Detectron2's order, and which of them the cap cuts off, is left
    to an unstable sort; here the lower (region, class) index comes first.

    Args:
        boxes: for each image (R, K*4), or (R, 4) for class-agnostic regression, or what makes them.
        scores: for each image (R, K+1), background last.
        image_shapes: (height, width) of each image.
        score_thresh: detections score more than this; one number, or (K,) for each class.
        nms_thresh: IoU above which the lower-scored box of a class is dropped.
        topk_per_image: D, how many detections to keep; negative keeps all.

    Returns:
        for each image its detections, best first, and the (D,) index of the region of each.
    """
    results = [
        _detect(boxes_i, scores_i, shape, score_thresh, nms_thresh, topk_per_image)
        for boxes_i, scores_i, shape in zip(boxes, scores, image_shapes)
    ]
    return [result[0] for result in results], [result[1] for result in results]


def _detect(
    boxes: Tensor | RegionBoxes,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float | Tensor,
    nms_thresh: float,
    topk: int,
) -> tuple[Instances, Tensor]:
    boxes = RegionBoxes.decoded(boxes) if isinstance(boxes, Tensor) else boxes
    is_traced = torch.jit.is_tracing()  # then no Python decision may depend on the numbers
    if not is_traced and not (boxes.is_finite() and _is_within(scores, float("inf"))):
        # As in Detectron2, the indices returned then count the finite regions only.
        is_finite = boxes.all().isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        boxes, scores = boxes.rows(is_finite), scores[is_finite]
    candidates = _Candidates(boxes, scores[:, :-1], image_shape, nms_thresh)
    keep = candidates.first_survivors(score_thresh, topk)

    detections = Instances(image_shape)
    detections.pred_boxes = Boxes(candidates.boxes(keep))
    detections.scores = candidates.scores[keep]
    detections.pred_classes = candidates.classes(keep)
    return detections, candidates.regions(keep)


class _Candidates:
    """Pairs of a region and a class, each known by its flat index into the (R, K) scores."""

    def __init__(
        self, boxes: RegionBoxes, scores: Tensor, image_shape: tuple[int, int], nms_thresh: float
    ):
        self.region_boxes, self.image_shape, self.nms_thresh = boxes, image_shape, nms_thresh
        self.table, self.scores = scores, scores.flatten()

    def regions(self, chosen: Tensor) -> Tensor:
        return chosen.div(self.table.shape[1], rounding_mode="floor")

    def classes(self, chosen: Tensor) -> Tensor:
        return chosen % self.table.shape[1]

    def boxes(self, chosen: Tensor) -> Tensor:
        """(N, 4), clipped to the image."""
        boxes = Boxes(self.region_boxes.of(self.regions(chosen), self.classes(chosen)))
        boxes.clip(self.image_shape)
        return boxes.tensor

    def first_survivors(self, score_thresh: float | Tensor, topk: int) -> Tensor:
        """The first ``topk`` survivors of NMS, best score first; all of them for -1."""
        is_candidate = (self.table > score_thresh).flatten()
        if torch.jit.is_tracing():
            return self._first_survivors_traced(is_candidate, topk)
        num_candidates = int(is_candidate.sum())
        budget = max(CANDIDATES_PER_DETECTION * topk, EXHAUSTIVE_CANDIDATES)
        if 0 <= topk and budget < num_candidates:
            scores = self.scores.masked_fill(~is_candidate, -1)
            while budget < num_candidates:
                # All at least as good as the M-th: ties at the cut would depend on their order.
                cut = scores.topk(budget, sorted=False).values.min()
                kept = self._survivors((scores >= cut).nonzero().flatten(), _nms_by_class)
                if len(kept) >= topk:
                    return kept[:topk]
                budget *= 4
        kept = self._survivors(is_candidate.nonzero().flatten(), batched_nms)
        return kept if topk < 0 else kept[:topk]

    def _first_survivors_traced(self, is_candidate: Tensor, topk: int) -> Tensor:
        chosen = is_candidate.nonzero().flatten()
        survivors = traced_survivors(
            self.boxes(chosen),
            self.scores[chosen],
            self.classes(chosen),
            self.image_shape,
            self.table.shape[1],
            self.nms_thresh,
            topk,
            max(CANDIDATES_PER_DETECTION * topk, EXHAUSTIVE_CANDIDATES),
        )
        return chosen[survivors]

    def _survivors(self, chosen: Tensor, suppress: Callable[..., Tensor]) -> Tensor:
        classes = self.classes(chosen)
        return chosen[suppress(self.boxes(chosen), self.scores[chosen], classes, self.nms_thresh)]


def _is_within(values: Tensor, limit: float) -> bool:
    """Whether all values are finite and at most ``limit``; in one pass, unlike ``isfinite``."""
    if not values.numel():
        return True
    low, high = values.aminmax()  # nan if any value is
    return bool((low >= -limit) & (high <= limit) & low.isfinite() & high.isfinite())


def _nms_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """
    Indices that survive NMS within their class, best score first, earlier index first in a tie.

    It computes IoUs from the boxes as they are, like Detectron2 does for as many candidates as
    there are here. The trick of shifting each class to a place of its own, which it uses for few
    boxes, rounds coordinates and would decide some near-ties differently.
    """
    order = classes.argsort(stable=True)
    sizes = torch.unique_consecutive(classes[order], return_counts=True)[1].tolist()
    groups = zip(order.split(sizes), boxes[order].split(sizes), scores[order].split(sizes))
    kept = [
        # The only candidate of a class survives.
        group if len(group) == 1 else group[nms(class_boxes, class_scores, threshold)]
        for group, class_boxes, class_scores in groups
    ]
    kept = torch.cat(kept).sort().values  # a stable sort by score then breaks ties by index
    return kept[scores[kept].argsort(descending=True, stable=True)]
