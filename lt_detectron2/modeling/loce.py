"""
Memory-augmented feature sampling of LOCE (ICCV 2021, https://arxiv.org/abs/2108.07507).

The second half of the method beside EquilibriumLoss: features of weak classes are kept, and some of
them join the regions of every step.

Shapes: K foreground classes, M features kept of each, D features of a region, N new regions, S
regions drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import ConfigError
from ..losses import EquilibriumLoss
from ..losses.base import check_non_negative
from .box_predictor import OBJECT_IDS
from .components import build
from .roi_heads import LongTailROIHeads

MIN_SCORE = 1e-12
"""A class that never scores is drawn most often, and not with an infinite weight."""


@dataclass(frozen=True)
class RememberedRegions:
    """
    Foreground regions of earlier images.

    Attributes:
        features: (S, D).
        boxes, gt_boxes: (S, 4) the region, and the object that it was cut at.
        classes: (S,).
    """

    features: Tensor
    boxes: Tensor
    gt_boxes: Tensor
    classes: Tensor


class FeatureMemory(nn.Module):
    """
    The latest features of each class, from which weak classes are drawn more often.

    The official code keeps what RoIAlign gives, 4.8 GB on LVIS. In the second stage for which it is
    made the layers behind that are frozen, so here it is their output, which is as good and 0.4 GB.
    It is saved with the model. Every process has its own, of the images that it has seen.

    Args:
        num_classes: K.
        num_features: D.
        capacity: M.
        copies: regions cut at each object, all moved a little.
        jitter: by how much of its width or height a corner is moved at most.
        classes_per_step: classes drawn in a step, with replacement.
        features_per_class: features drawn of each, with replacement.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        capacity: int = 80,
        copies: int = 16,
        jitter: float = 1 / 6,
        classes_per_step: int = 8,
        features_per_class: int = 4,
    ):
        super().__init__()
        numbers = (capacity, copies, classes_per_step, features_per_class)
        if min(numbers) < 1:
            raise ValueError(
                "capacity, copies, classes_per_step and features_per_class must be at least 1, got "
                f"{numbers}"
            )
        self.capacity = int(capacity)
        self.copies = int(copies)
        self.jitter = check_non_negative("jitter", jitter)
        if jitter >= 0.5:
            raise ValueError(f"jitter must be below 0.5, got {jitter}: corners would cross")
        self.classes_per_step = int(classes_per_step)
        self.features_per_class = int(features_per_class)
        # The last row takes what is overwritten at once.
        shape = (num_classes + 1, self.capacity)
        self.register_buffer("features", torch.zeros(*shape, num_features))
        self.register_buffer("boxes", torch.zeros(*shape, 4))
        self.register_buffer("gt_boxes", torch.zeros(*shape, 4))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.int64))
        """(K,) features that each class has ever had."""
        self._holds_any = False  # asking waits for the device; what is true stays so

    def jittered(self, boxes: Tensor) -> Tensor:
        """(N * copies, 4) boxes (N, 4), each ``copies`` times in a row, with moved corners."""
        boxes = boxes.repeat_interleave(self.copies, dim=0)
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return boxes + size * self.jitter * (2 * torch.rand_like(boxes) - 1)

    @torch.no_grad()
    def add(self, regions: RememberedRegions) -> None:
        """Keep regions, in their order; the oldest ones of their classes are forgotten."""
        classes = regions.classes
        num_classes = len(self.seen)
        order = classes.argsort(stable=True)
        count = torch.zeros_like(self.seen).scatter_add(0, classes, torch.ones_like(classes))
        first = count.cumsum(0) - count
        rank = torch.empty_like(classes)
        rank[order] = torch.arange(len(classes), device=classes.device) - first[classes[order]]
        slot = (self.seen[classes] + rank) % self.capacity
        is_kept = rank >= count[classes] - self.capacity
        row = torch.where(is_kept, classes, num_classes)
        self.features[row, slot] = regions.features.to(self.features.dtype)
        self.boxes[row, slot] = regions.boxes
        self.gt_boxes[row, slot] = regions.gt_boxes
        for kept in (self.features, self.boxes, self.gt_boxes):
            kept[-1] = 0  # whichever came last there
        self.seen += count

    def draw(self, mean_scores: Tensor) -> RememberedRegions:
        """
        Regions of classes drawn with probabilities proportional to 1 / mean score.

        Classes that have no features are never drawn; without any class, nothing is.

        Args:
            mean_scores: (K,)
        """
        self._holds_any = self._holds_any or bool(self.seen.any())
        weights = torch.where(self.seen > 0, 1 / mean_scores.double().clamp(min=MIN_SCORE), 0.0)
        if not self._holds_any:
            none = self.seen.new_zeros(0)
            return self._at(none, none)
        # Not multinomial, for which the host waits. float32 draws, times the sum, stay below it.
        draws = torch.rand(self.classes_per_step, device=weights.device).double()
        ends = weights.cumsum(dim=0)
        classes = torch.searchsorted(ends, draws * ends[-1], right=True)
        classes = classes.repeat_interleave(self.features_per_class)
        filled = self.seen[classes].clamp(max=self.capacity)
        slots = (
            torch.rand(len(classes), device=classes.device, dtype=torch.float64) * filled
        ).long()
        return self._at(classes, slots)

    def _at(self, classes: Tensor, slots: Tensor) -> RememberedRegions:
        return RememberedRegions(
            self.features[classes, slots],
            self.boxes[classes, slots],
            self.gt_boxes[classes, slots],
            classes,
        )


@ROI_HEADS_REGISTRY.register()
class LOCEROIHeads(LongTailROIHeads):
    """
    LongTailROIHeads with a FeatureMemory, ``LONG_TAIL.FEATURE_MEMORY``: the second stage of LOCE.

    Needs EquilibriumLoss, which then observes each object and each remembered class once. The box
    head must be frozen.

    Args:
        feature_memory: features to train on beside those of the step's images.
        kwargs: arguments of Detectron2's class.
    """

    @configurable
    def __init__(self, *, feature_memory: FeatureMemory, **kwargs: Any):
        super().__init__(**kwargs)
        self.feature_memory = feature_memory

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape)
        predictor = arguments["box_predictor"]
        if not isinstance(predictor.classification_loss, EquilibriumLoss):
            raise ConfigError(
                f"LOCEROIHeads draws classes by the mean scores that EquilibriumLoss keeps, and "
                f"LONG_TAIL.LOSS.NAME is {cfg.LONG_TAIL.LOSS.NAME!r}: use EquilibriumLoss, or "
                "LongTailROIHeads"
            )
        if cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES:
            raise ConfigError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES has no meaning for remembered regions of "
                "LOCEROIHeads: switch it off"
            )
        key, num_features = "LONG_TAIL.FEATURE_MEMORY", predictor.cls_score.in_features
        memory = build(
            key,
            FeatureMemory,
            cfg.LONG_TAIL.FEATURE_MEMORY,
            predictor.num_classes,
            num_features,
        )
        return arguments | {"feature_memory": memory}

    def forward(
        self,
        images: Any,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See Detectron2's method of this name."""
        if self.training:
            self.remember(features, targets)
            _number_objects(targets)
        return super().forward(images, features, proposals, targets)

    @torch.no_grad()
    def remember(self, features: dict[str, Tensor], targets: list[Instances]) -> None:
        """Cut the objects of some images out of their features and keep them."""
        memory = self.feature_memory
        boxes = [Boxes(memory.jittered(image.gt_boxes.tensor)) for image in targets]
        gt_boxes = cat([image.gt_boxes.tensor for image in targets])
        classes = cat([image.gt_classes for image in targets])
        memory.add(
            RememberedRegions(
                self._box_features(features, boxes).flatten(start_dim=1),
                cat([image.tensor for image in boxes]),
                gt_boxes.repeat_interleave(memory.copies, dim=0),
                classes.repeat_interleave(memory.copies, dim=0),
            )
        )

    @torch.no_grad()
    def fill_memory(self, model: nn.Module, batches: Iterable[list[dict[str, Any]]]) -> None:
        """
        Go once over images, so that no class with an object in them is unknown.

        Objects of classes whose memory is full are passed over.

        Args:
            model: the detector that these heads are of; in evaluation mode.
            batches: training images with annotations; those of this process, of which there may
                be none of a rare class. It is then not drawn here before it has come up.

        Raises:
            ConfigError: what is remembered would change while training.
        """
        if any(parameter.requires_grad for parameter in self.box_head.parameters()):
            raise ConfigError(
                "LOCEROIHeads remembers what the box head says, which must not change: leave "
                "roi_heads.box_head and backbone out of LONG_TAIL.TRAINABLE, for example with "
                "['classifier', 'roi_heads.box_predictor.bbox_pred', 'proposal_generator']"
            )
        for batch in batches:
            targets = [image["instances"].to(model.device) for image in batch]
            lacking = self.feature_memory.seen < self.feature_memory.capacity
            targets = [image[lacking[image.gt_classes]] for image in targets]
            if any(len(image) for image in targets):
                images = model.preprocess_image(batch)
                self.remember(model.backbone(images.tensor), targets)

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], *targets: Any
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.training:
            return super()._forward_box(features, proposals, *targets)
        mean_scores = self.box_predictor.classification_loss.mean_score[:-1]
        drawn = self.feature_memory.draw(mean_scores)
        box_features = self._box_features(features, [image.proposal_boxes for image in proposals])
        box_features = cat([box_features.flatten(start_dim=1), drawn.features])
        predictions = self.box_predictor(box_features)
        return self.box_predictor.losses(predictions, [*proposals, _as_image(drawn, proposals)])

    def _box_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        return self.box_head(self.box_pooler([features[n] for n in self.box_in_features], boxes))


def _number_objects(targets: list[Instances]) -> None:
    """Give each object of a step a number; Detectron2 hands it on to the object's regions."""
    first = 0
    for image in targets:
        numbers = torch.arange(first, first + len(image), device=image.gt_classes.device)
        image.set(OBJECT_IDS, numbers)
        first += len(image)


def _as_image(drawn: RememberedRegions, proposals: list[Instances]) -> Instances:
    """Remembered regions beside those of images; those of a class are one object."""
    image = Instances(proposals[0].image_size)
    image.proposal_boxes = Boxes(drawn.boxes)
    image.gt_boxes = Boxes(drawn.gt_boxes)
    image.gt_classes = drawn.classes
    image.set(OBJECT_IDS, -1 - drawn.classes)
    return image
