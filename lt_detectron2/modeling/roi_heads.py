"""Standard and Cascade heads for every method: Detectron2's, with our box predictor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import ConfigError
from .box_predictor import BoxPredictions, LongTailFastRCNNOutputLayers
from .freeze import can_learn
from .mask_head import normalize_mask_predictor
from .postprocess import RegionBoxes


@dataclass(frozen=True)
class RegionPredictions:
    """
    What the box heads say about the regions of some images, before it becomes scores.

    Attributes:
        stages: each stage's predictor, its predictions, and the regions they are about.
        boxes: for each image those of the last stage.
        average: of what the stages' mean is taken, "scores" or "logits".
        proposal_scores: for each image (R,) in [0, 1] what the RPN thinks of its regions, if that
            is to count.
    """

    stages: tuple[tuple[LongTailFastRCNNOutputLayers, BoxPredictions, list[Instances]], ...]
    boxes: list[RegionBoxes]
    average: str = "scores"
    proposal_scores: tuple[Tensor, ...] | None = None

    def scores(self) -> list[Tensor]:
        """For each image the (R, K+1) scores of all stages together."""
        scores = self._stage_scores()
        if self.proposal_scores is None:
            return scores
        return [
            multiply_proposal_score(of_image, proposals)
            for of_image, proposals in zip(scores, self.proposal_scores)
        ]

    def _stage_scores(self) -> list[Tensor]:
        if self.average == "logits":
            return self._scores_of_mean_logits()
        stages = [
            predictor.predict_probs(predictions, regions)
            for predictor, predictions, regions in self.stages
        ]
        if len(stages) == 1:
            return list(stages[0])
        return [sum(image) * (1.0 / len(stages)) for image in zip(*stages)]

    def _scores_of_mean_logits(self) -> list[Tensor]:
        predictor, predictions, regions = self.stages[-1]
        if predictor.calibration is not None and predictor.calibration.required:
            raise ConfigError(
                f"{type(predictor.calibration).__name__} makes logits of its own from each stage's "
                "features, and LONG_TAIL.CASCADE_AVERAGE asks for the mean of those there are: set "
                "it to scores"
            )
        logits = sum(stage[0] for _, stage, _ in self.stages) / len(self.stages)
        mean = BoxPredictions(logits, predictions[1], predictions.features)
        return list(predictor.predict_probs(mean, regions))

    def detections(self) -> list[Instances]:
        """For each image its detections."""
        predictor, _, regions = self.stages[-1]
        image_sizes = [image.image_size for image in regions]
        return predictor.select_detections(self.boxes, self.scores(), image_sizes)[0]


def multiply_proposal_score(scores: Tensor, proposal_scores: Tensor) -> Tensor:
    """
    (R, K+1) geometric mean of the scores of a region and of its proposal.

    As CenterNet2 and Detic do with the federated loss (https://arxiv.org/abs/2103.07461).

    Args:
        scores: (R, K+1) in [0, 1].
        proposal_scores: (R,) probability in [0, 1] that the proposal is an object.
    """
    return (scores * proposal_scores[:, None]).sqrt()


class _LongTailHeads:
    """What both heads do: test time, masks, and leaving out losses without gradient."""

    average = "scores"

    @property
    def box_stages(self) -> list[tuple[nn.Module, LongTailFastRCNNOutputLayers]]:
        """Box head and predictor of each stage."""
        if isinstance(self.box_head, nn.ModuleList):
            return list(zip(self.box_head, self.box_predictor))
        return [(self.box_head, self.box_predictor)]

    def run_box_stage(
        self, features: dict[str, Tensor], boxes: list[Boxes], stage: int
    ) -> BoxPredictions:
        """Predictions of one stage for boxes of each image."""
        box_head, predictor = self.box_stages[stage]
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return predictor(box_head(pooled), pooled if predictor.wants_pooled_features else None)

    def predict_regions(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> RegionPredictions:
        """Run all stages at test time; each but the first sees the boxes of the one before."""
        image_sizes = [image.image_size for image in proposals]
        proposal_scores = None
        if self.box_stages[0][1].uses_proposal_score:
            proposal_scores = tuple(image.objectness_logits.sigmoid() for image in proposals)
        stages = []
        for stage, (_, predictor) in enumerate(self.box_stages):
            if stages:
                before, predictions, _ = stages[-1]
                boxes = before.predict_boxes(predictions, proposals)
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            regions = [image.proposal_boxes for image in proposals]
            predictions = self.run_box_stage(features, regions, stage)
            stages.append((predictor, predictions, proposals))
        predictor, predictions, _ = stages[-1]
        boxes = predictor.region_boxes(predictions, proposals)
        return RegionPredictions(tuple(stages), boxes, self.average, proposal_scores)

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], *targets: Any
    ) -> dict[str, Tensor] | list[Instances]:
        if self.training:
            return super()._forward_box(features, proposals, *targets)
        return self.predict_regions(features, proposals).detections()

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        arguments = super()._init_mask_head(cfg, input_shape)
        if arguments:
            normalize_mask_predictor(arguments["mask_head"], cfg)
        return arguments

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if self.training and self.mask_on and not can_learn(self.mask_head, features.values()):
            return {}
        return super()._forward_mask(features, instances)

    def _forward_keypoint(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if (
            self.training
            and self.keypoint_on
            and not can_learn(self.keypoint_head, features.values())
        ):
            return {}
        return super()._forward_keypoint(features, instances)


@ROI_HEADS_REGISTRY.register()
class LongTailROIHeads(_LongTailHeads, StandardROIHeads):
    """Detectron2's StandardROIHeads with LongTailFastRCNNOutputLayers."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        features = arguments["box_head"].output_shape
        arguments["box_predictor"] = LongTailFastRCNNOutputLayers(cfg, features)
        return arguments


@ROI_HEADS_REGISTRY.register()
class LongTailCascadeROIHeads(_LongTailHeads, CascadeROIHeads):
    """
    Detectron2's CascadeROIHeads with LongTailFastRCNNOutputLayers, one for each stage.

    So each stage has its own loss and training state.

    Args:
        average: what to take the mean of over stages at test time: "scores" as Detectron2 does, or
            "logits", from which scores are made once, as the official code of BAGS does.
        kwargs: arguments of Detectron2's class.
    """

    @configurable
    def __init__(self, *, average: str = "scores", **kwargs: Any):
        super().__init__(**kwargs)
        self.average = average

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        return super().from_config(cfg, input_shape) | {"average": cfg.LONG_TAIL.CASCADE_AVERAGE}

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        arguments["box_predictors"] = [
            LongTailFastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=stock.box2box_transform
            )
            for head, stock in zip(arguments["box_heads"], arguments["box_predictors"])
        ]
        return arguments
