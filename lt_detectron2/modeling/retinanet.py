"""RetinaNet with Harmonic coupling and HIoU; its classification loss stays the focal loss."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..losses import FocalLoss, HarmonicCoupling
from .box_losses import DETECTRON2_BOX_LOSSES, BoxLoss
from .components import box_loss_factory, build_harmonic_coupling
from .composition import check_composition
from .coupling import coupled_sums
from .postprocess import CANDIDATES_PER_DETECTION
from .traced_postprocess import traced_survivors


@META_ARCH_REGISTRY.register()
class LongTailRetinaNet(RetinaNet):
    """
    Detectron2's RetinaNet, with ``LONG_TAIL.HARMONIC`` and the box losses of ``LONG_TAIL.HIOU``.

    The focal loss of a positive anchor, summed over its K columns, is coupled with its box loss;
    beta_c is the sigmoid of its true class. Both sums have RetinaNet's normaliser. Without coupling
    and with a box loss of Detectron2's, this is Detectron2's RetinaNet to the last bit.

    Args:
        harmonic: what couples, or None.
        box_loss: loss of single boxes.
        kwargs: arguments of Detectron2's class.
    """

    @configurable
    def __init__(self, *, harmonic: HarmonicCoupling | None, box_loss: BoxLoss, **kwargs: Any):
        super().__init__(**kwargs)
        self.harmonic = harmonic
        self.box_loss = box_loss
        # Detectron2 writes "no weights" as a negative alpha.
        alpha = self.focal_loss_alpha if self.focal_loss_alpha >= 0 else None
        self.focal_loss = FocalLoss(
            self.num_classes, alpha=alpha, gamma=self.focal_loss_gamma, normalizer="regions"
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_composition(cfg)
        stock = super().from_config(cfg)
        box_loss = box_loss_factory(cfg)(
            stock["box_reg_loss_type"], stock["box2box_transform"], stock["smooth_l1_beta"]
        )
        return stock | {"harmonic": build_harmonic_coupling(cfg), "box_loss": box_loss}

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """See Detectron2's method of this name, whose arguments these are."""
        if self.harmonic is None and self.box_loss.name in DETECTRON2_BOX_LOSSES:
            return super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        labels = torch.stack(gt_labels)  # (N, R), -1 is ignored
        is_valid = labels >= 0
        targets = labels[is_valid]
        foreground = (targets < self.num_classes).nonzero()[:, 0]
        get_event_storage().put_scalar("num_pos_anchors", len(foreground) / len(labels))
        # Detectron2 keeps this running mean in a method without a public name.
        normalizer = self._ema_update("loss_normalizer", max(len(foreground), 1), 100)

        is_foreground = is_valid & (labels < self.num_classes)
        boxes = Boxes.cat(anchors).tensor.expand(len(labels), -1, -1)[is_foreground]
        deltas = cat(pred_anchor_deltas, dim=1)[is_foreground]
        box_losses = self.box_loss(deltas, boxes, torch.stack(gt_boxes)[is_foreground])
        logits = cat(pred_logits, dim=1)[is_valid]
        with torch.autocast(logits.device.type, enabled=False):
            class_losses = self.focal_loss.region_losses(logits.float(), targets)
        class_sum, box_sum = class_losses.sum(), box_losses.sum()
        if self.harmonic is not None:
            scores = logits[foreground, targets[foreground]].sigmoid()
            class_sum, box_sum = coupled_sums(
                self.harmonic, class_losses, foreground, box_losses, scores
            )
        return {"loss_cls": class_sum / normalizer, "loss_box_reg": box_sum / normalizer}

    # ---- what a trace would record of one image only

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        if not torch.jit.is_tracing():
            return super()._decode_per_level_predictions(
                anchors, pred_scores, pred_deltas, score_thresh, topk_candidates, image_size
            )
        # Python's min() of this number and that of the candidates would be a number of the trace.
        chosen = pred_scores > score_thresh
        scores, order = pred_scores[chosen].sort(descending=True)
        rows, classes = chosen.nonzero()[order[:topk_candidates]].unbind(dim=1)
        boxes = self.box2box_transform.apply_deltas(pred_deltas[rows], anchors.tensor[rows])
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes),
            scores=scores[:topk_candidates],
            pred_classes=classes,
        )

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[Tensor],
        box_delta: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """See Detectron2's method of this name, whose arguments these are."""
        if not torch.jit.is_tracing():
            return super().inference_single_image(anchors, box_cls, box_delta, image_size)
        found = self._decode_multi_level_predictions(
            anchors,
            box_cls,
            box_delta,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        boxes, limit = found.pred_boxes.tensor, self.max_detections_per_image
        # These boxes reach beyond their image: they are kept apart by the frame around all.
        coordinates = torch.cat([boxes.flatten(), boxes.new_zeros(1)])
        low, high = coordinates.amin(), coordinates.amax()
        keep = traced_survivors(
            boxes - low,
            found.scores,
            found.pred_classes,
            (high - low, high - low),
            self.num_classes,
            self.test_nms_thresh,
            limit,
            CANDIDATES_PER_DETECTION * limit,
        )
        return found[keep]
