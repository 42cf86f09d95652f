"""
The box predictor of every method: Detectron2's, with losses and classifier as components.

Shapes: R regions over all images, P of them foreground, K foreground classes, L logits a region.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..calibration import Calibration, RegionOutputs
from ..data.statistics import training_statistics
from ..errors import ConfigError
from ..layers import CausalClassifier, CosineLinear
from ..losses.base import ClassificationLoss
from ..losses.harmonic import HarmonicCoupling, paired_iou
from .accuracy import ClassificationMonitor, is_log_iteration
from .box_losses import DETECTRON2_BOX_LOSSES, BoxLoss
from .classification_loss import build_classification_loss, find_loss, needs_statistics
from .components import (
    box_loss_factory,
    build_calibration,
    build_harmonic_coupling,
    build_ranking_loss,
    calibration_needs_statistics,
    classifier_factory,
    ranking_needs_statistics,
)
from .composition import check_composition, check_harmonic
from .coupling import coupled_sums
from .freeze import can_learn
from .gradient_sums import GradientSums
from .postprocess import RegionBoxes, fast_rcnn_inference

OBJECT_IDS = "gt_object_ids"
"""Field of regions: the object that each belongs to, numbered over all images of a step."""


class BoxPredictions(tuple):
    """
    The pair (logits, deltas) that Detectron2 unpacks, and what the logits were made from.

    Attributes:
        features: (R, D) input of the classifier.
        pooled_features: (R, C, H, W) output of RoIAlign, where somebody asked for it, or None.
    """

    features: Tensor
    pooled_features: Tensor | None

    def __new__(
        cls, logits: Tensor, deltas: Tensor, features: Tensor, pooled_features: Tensor | None = None
    ) -> BoxPredictions:
        pair = super().__new__(cls, (logits, deltas))
        pair.features = features
        pair.pooled_features = pooled_features
        return pair


class LongTailFastRCNNOutputLayers(FastRCNNOutputLayers):
    """
    Class logits and box deltas of each region, trained with a loss of this package.

    The classifier is as wide as the loss wants. With ``SoftmaxCrossEntropyLoss`` and without
    add-ons this equals Detectron2's class to the last bit, checkpoint keys included.

    Args:
        input_shape: shape of a region's features.
        classification_loss: what trains the classifier and turns its logits into scores.
        make_classifier: from the numbers of features and logits to a classifier.
        make_box_loss: from ``box_reg_loss_type``, ``box2box_transform`` and ``smooth_l1_beta`` to
            the loss of single boxes.
        ranking_loss: what trains the class logits as well.
        harmonic: what couples classification and box loss of each foreground region.
        calibration: what makes the scores at test time instead of the loss.
        frequency_group: (K,) rare / common / frequent, for the log only.
        uses_proposal_score: whether the heads take the RPN's scores into account at test time.
        kwargs: arguments of Detectron2's class.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classification_loss: ClassificationLoss,
        make_classifier: Callable[[int, int], nn.Linear] = nn.Linear,
        make_box_loss: Callable[[str, Box2BoxTransform, float], BoxLoss] = BoxLoss,
        ranking_loss: nn.Module | None = None,
        harmonic: HarmonicCoupling | None = None,
        calibration: Calibration | None = None,
        frequency_group: Tensor | None = None,
        uses_proposal_score: bool = False,
        **kwargs: Any,
    ):
        super().__init__(input_shape, **kwargs)
        if classification_loss.num_classes != self.num_classes:
            raise ValueError(
                f"the loss is made for {classification_loss.num_classes} classes and the box "
                f"predictor for {self.num_classes}: give both the same num_classes"
            )
        self.cls_score = _fit_classifier(self.cls_score, classification_loss, make_classifier)
        self.classification_loss = classification_loss
        self.box_loss = make_box_loss(
            self.box_reg_loss_type, self.box2box_transform, self.smooth_l1_beta
        )
        self.uses_proposal_score = uses_proposal_score
        self.ranking_loss = ranking_loss
        self.harmonic = harmonic
        self.set_calibration(calibration)
        self.monitor = ClassificationMonitor(
            self.num_classes, frequency_group, has_background=classification_loss.has_background
        )
        self.gradient_sums: GradientSums | None = None  # set by who wants to know

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        check_composition(cfg)
        required = needs_statistics(find_loss(cfg.LONG_TAIL.LOSS.NAME))
        required = required or ranking_needs_statistics(cfg) or calibration_needs_statistics(cfg)
        statistics = training_statistics(cfg, required=required)
        loss = build_classification_loss(cfg, statistics)
        harmonic = build_harmonic_coupling(cfg)
        check_harmonic(harmonic, loss)
        return super().from_config(cfg, input_shape) | {
            "classification_loss": loss,
            "make_classifier": classifier_factory(cfg),
            "make_box_loss": box_loss_factory(cfg),
            "ranking_loss": build_ranking_loss(cfg, statistics),
            "harmonic": harmonic,
            "calibration": build_calibration(cfg, statistics),
            "frequency_group": statistics and statistics.frequency_group(),
            "uses_proposal_score": cfg.LONG_TAIL.PROPOSAL_SCORE,
        }

    def set_calibration(self, calibration: Calibration | None) -> None:
        """
        Make scores by this method from now on, or by the loss alone.

        Raises:
            ConfigError: the method means nothing for this classifier and loss.
        """
        if calibration is not None:
            try:
                calibration.check(self.cls_score, self.classification_loss.scores)
            except ValueError as error:
                raise ConfigError(f"LONG_TAIL.CALIBRATION: {error}") from error
        self.calibration = calibration

    def forward(self, features: Tensor, pooled_features: Tensor | None = None) -> BoxPredictions:
        """
        Args:
            features: (R, D) output of the box head.
            pooled_features: (R, C, H, W) its input, for calibrations that compare it.
        """
        logits, deltas = super().forward(features)
        return BoxPredictions(logits, deltas, features.flatten(start_dim=1), pooled_features)

    @property
    def wants_pooled_features(self) -> bool:
        """Whether the scores are made from what RoIAlign gave to the box head."""
        return self.calibration is not None and "pooled_features" in self.calibration.required

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: logits (R, L) and box deltas of the regions.
            proposals: for each image its sampled regions, with ``proposal_boxes``, ``gt_classes``
                and, where any region is foreground, ``gt_boxes``; OBJECT_IDS for losses that can
                be told.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, with a ranking loss ``loss_rank``, with task contrast
            ``loss_contrast``; scalars with a graph also without any region. What is frozen, and all
            below it, has no loss.
        """
        logits, deltas = predictions
        targets, boxes, gt_boxes = _collect(proposals, logits)
        if isinstance(self.cls_score, CausalClassifier):
            self.cls_score.update(predictions.features, targets < self.num_classes)
        if self.gradient_sums is not None:
            self.gradient_sums.watch(logits, targets, self.classification_loss.class_logits)
        learns_classes = can_learn(self.cls_score, [logits])
        learns_boxes = can_learn(self.bbox_pred, [deltas])
        losses, region_data = {}, _region_data(proposals)
        if self.harmonic is not None and (learns_classes or learns_boxes):
            losses = self._coupled_losses(logits, boxes, gt_boxes, deltas, targets, region_data)
        else:
            if learns_classes:
                losses["loss_cls"] = self.classification_loss(logits, targets, **region_data)
            if learns_boxes:
                losses["loss_box_reg"] = self.box_reg_loss(boxes, gt_boxes, deltas, targets)
        if self.ranking_loss is not None and learns_classes:
            losses["loss_rank"] = self._rank(logits, targets)
        self.monitor.update(self.classification_loss.scores, logits, targets)
        self.monitor.log_class_state(self.classification_loss.class_state())
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def box_reg_loss(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        """Sum of the foreground regions' box losses over the number of regions."""
        if self.box_loss.name in DETECTRON2_BOX_LOSSES:
            return super().box_reg_loss(proposal_boxes, gt_boxes, pred_deltas, gt_classes)
        foreground = self._foreground(gt_classes)
        deltas = self._own_deltas(pred_deltas, gt_classes, foreground)
        losses = self.box_loss(deltas, proposal_boxes[foreground], gt_boxes[foreground])
        return losses.sum() / max(len(gt_classes), 1)

    def _coupled_losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        gt_boxes: Tensor,
        deltas: Tensor,
        targets: Tensor,
        region_data: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        foreground = self._foreground(targets)
        boxes, gt_boxes = boxes[foreground], gt_boxes[foreground]
        deltas = self._own_deltas(deltas, targets, foreground)
        box_losses = self.box_loss(deltas, boxes, gt_boxes)
        class_losses, scores = self._region_terms(logits, targets, foreground, region_data)
        own_scores = scores.gather(1, targets[foreground, None])[:, 0]
        weight = self.loss_weight.get("loss_box_reg", 1.0) / self.loss_weight.get("loss_cls", 1.0)
        class_sum, box_sum = coupled_sums(
            self.harmonic, class_losses, foreground, box_losses, own_scores, weight
        )
        sums = {"loss_cls": class_sum, "loss_box_reg": box_sum}
        if self.harmonic.task_contrast:
            ious = paired_iou(self.box2box_transform.apply_deltas(deltas, boxes), gt_boxes)
            contrasts = self.harmonic.contrast(scores, targets[foreground], ious)
            sums["loss_contrast"] = contrasts.sum()
        return {name: total / max(len(targets), 1) for name, total in sums.items()}

    def _region_terms(
        self,
        logits: Tensor,
        targets: Tensor,
        foreground: Tensor,
        region_data: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """(R,) classification losses, and the (P, K+1) scores of foreground regions."""
        loss = self.classification_loss
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            class_losses = loss.region_losses(logits, targets, **region_data)
            return class_losses, loss.scores(logits[foreground])

    def _rank(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the ranking loss adds to the others; logs its value without weights, too."""
        ranking = self.ranking_loss(self.classification_loss.class_logits(logits), targets)
        if is_log_iteration():
            get_event_storage().put_scalar("ranking/unweighted_loss", ranking.value.item())
        self.monitor.log_class_state(self.ranking_loss.class_state())
        return ranking.loss

    def _foreground(self, targets: Tensor) -> Tensor:
        """(P,) indices of the foreground regions."""
        return (targets < self.num_classes).nonzero()[:, 0]

    def _own_deltas(self, deltas: Tensor, targets: Tensor, foreground: Tensor) -> Tensor:
        """(P, 4) deltas of foreground regions for their own class."""
        if deltas.shape[1] == 4:  # class-agnostic regression
            return deltas[foreground]
        return deltas.unflatten(1, (-1, 4))[foreground, targets[foreground]]

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """For each image the (R, K+1) scores of its regions, background last."""
        if self.calibration is None:
            scores = self.classification_loss.scores(predictions[0])
        else:
            scores = self.calibration(self.region_outputs(predictions))
        return scores.split([len(image) for image in proposals], dim=0)

    def region_outputs(self, predictions: BoxPredictions) -> RegionOutputs:
        """What a calibration is given."""
        return RegionOutputs(
            predictions[0],
            self.classification_loss.scores,
            predictions.features,
            self.cls_score,
            predictions.pooled_features,
        )

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """For each image its detections, and the region that each came from."""
        boxes = self.region_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        return self.select_detections(boxes, scores, [image.image_size for image in proposals])

    def region_boxes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[RegionBoxes]:
        """For each image its boxes, as `predict_boxes`, but decoded only when asked for."""
        deltas = predictions[1].split([len(image) for image in proposals])
        return [
            RegionBoxes(of_image, image.proposal_boxes.tensor, self.box2box_transform)
            for of_image, image in zip(deltas, proposals)
        ]

    def select_detections(
        self,
        boxes: list[Tensor | RegionBoxes],
        scores: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> tuple[list[Instances], list[Tensor]]:
        """Threshold, NMS and cap of this predictor on boxes and scores from anywhere."""
        return fast_rcnn_inference(
            boxes,
            scores,
            image_sizes,
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )


def _fit_classifier(
    classifier: nn.Linear,
    loss: ClassificationLoss,
    make_classifier: Callable[[int, int], nn.Linear],
) -> nn.Linear:
    """Detectron2's classifier if it will do, else a new one; initialised for the loss."""
    if make_classifier is not nn.Linear or loss.num_logits != classifier.out_features:
        classifier = make_classifier(classifier.in_features, loss.num_logits)
        if isinstance(classifier, CausalClassifier):
            return _without_bias(classifier, loss)
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)
    loss.init_classifier(classifier)
    if isinstance(classifier, CosineLinear):
        # Some losses start from equal weights, which are one direction: all classes would have the
        # same large cosine with any feature vector. Of their start only the bias is kept.
        classifier.reset_weight()
    return classifier


def _without_bias(classifier: CausalClassifier, loss: ClassificationLoss) -> CausalClassifier:
    """The classifier, unless the loss wants it to start from a bias, which it has not."""
    linear = nn.Linear(1, loss.num_logits)
    nn.init.zeros_(linear.bias)
    loss.init_classifier(linear)
    if linear.bias.any():
        raise ConfigError(
            f"{type(loss).__name__} starts from biases, and LONG_TAIL.CLASSIFIER.NAME "
            "CausalClassifier has none: use a softmax loss, or another classifier"
        )
    return classifier


def _region_data(proposals: list[Instances]) -> dict[str, Tensor]:
    """What a loss is told of the regions beside their classes, if the heads say it."""
    if not any(image.has(OBJECT_IDS) for image in proposals):
        return {}
    ids = [
        # An image without objects has none; nobody reads those of background regions.
        image.get(OBJECT_IDS) if image.has(OBJECT_IDS) else torch.zeros_like(image.gt_classes)
        for image in proposals
    ]
    return {"object_ids": cat(ids)}


def _collect(proposals: list[Instances], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Targets (R,), region boxes (R, 4) and matched boxes (R, 4) of all images."""
    if not proposals:
        empty = logits.new_zeros(0, 4, dtype=torch.float32)
        return torch.zeros(0, dtype=torch.int64, device=logits.device), empty, empty
    targets = cat([image.gt_classes for image in proposals])
    boxes = cat([image.proposal_boxes.tensor for image in proposals])
    # An image without objects has no gt_boxes; its regions are background and regress nothing.
    matched = [
        (image.gt_boxes if image.has("gt_boxes") else image.proposal_boxes).tensor
        for image in proposals
    ]
    return targets, boxes, cat(matched)
