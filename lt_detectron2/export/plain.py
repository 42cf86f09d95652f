"""
A detector of Detectron2's own classes with the same detections, where there is one.

Detectron2's box predictor scores a region by softmax(W x + b), or, in its main branch and with
``USE_SIGMOID_CE``, by sigmoid(W x + b). What our classifier, loss and calibration compute at test
time can be written like that for some methods, and then exactly; for all others this module says
why it cannot.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn

from ..calibration import Calibration, NorCal, TauNorm
from ..calibration.tau_norm import BackgroundStrategy, tau_normalize
from ..errors import ExportError
from ..layers import LearnableWeightScaling
from ..losses import LDAMLoss
from ..losses.base import ClassificationLoss
from ..modeling.box_losses import DETECTRON2_BOX_LOSSES
from ..modeling.box_predictor import LongTailFastRCNNOutputLayers

HEADS = {
    "LongTailROIHeads": "StandardROIHeads",
    "LOCEROIHeads": "StandardROIHeads",
    "LongTailCascadeROIHeads": "CascadeROIHeads",
}
"""Detectron2's heads of the same inference."""

INFERENCE_NODES = ("MODEL", "INPUT", "TEST")
"""Of a config; the others describe a training."""

FOLDED_TAU_NORMS = (BackgroundStrategy.NONE, BackgroundStrategy.DROP_BIAS)

NEVER = -100.0
"""Bias of a background that a sigmoid head needs and the loss has not: it scores 4e-44."""

REASONS = {
    "EqualizationLossV2": "multiplies the sigmoid of a class by 1 - P(background), or has two "
    "logits a class",
    "EffectiveClassMarginLoss": "multiplies the sigmoid of a class by 1 - P(background)",
    "SeesawLoss": "multiplies a softmax over the classes by one over object and background",
    "GroupSoftmaxLoss": "multiplies softmaxes over groups of classes",
    "GumbelLoss": "scores by exp(-exp(-z))",
    "FBSAEGLoss": "scores by exp(-exp(-z))",
}


@dataclass(frozen=True)
class PlainHead:
    """
    What Detectron2's box predictor needs to score like ours.

    Attributes:
        classifier: from features (R, D) to K+1 logits, background last.
        uses_sigmoid: whether scores are their sigmoids, else their softmax.
    """

    classifier: nn.Linear
    uses_sigmoid: bool


def fold(
    classifier: nn.Linear, loss: ClassificationLoss, calibration: Calibration | None = None
) -> PlainHead:
    """
    The ordinary head with the same scores as these three together.

    Exact up to rounding for: a Linear or LearnableWeightScaling classifier; a loss whose scores are
    the softmax of K+1 logits or the sigmoids of each; after a softmax also TauNorm with the
    background "none" or "drop_bias", and NorCal that normalises: softmax(z - log a), or
    softmax(z / a).

    Raises:
        ExportError: there is none, and why.
    """
    linear = _fold_classifier(classifier)
    kind = _kind(loss, linear)
    if kind == "softmax":
        linear = _fold_softmax(linear, loss, calibration)
    elif calibration is not None:
        raise ExportError(
            f"{type(calibration).__name__} after sigmoids is no sigmoid of the logits: "
            + _elsewhere()
        )
    elif loss.num_logits == loss.num_classes:
        linear = _with_background(linear)
    return PlainHead(linear, uses_sigmoid=kind == "sigmoid")


def plain_detector(cfg: CfgNode, model: nn.Module) -> tuple[CfgNode, nn.Module]:
    """
    A detector of Detectron2's classes with the detections of ``model``, and its config.

    The backbone stays what it is; ``build_narrow_resnet_fpn_backbone`` of the small configs is one
    of this package's.

    Raises:
        ExportError: there is none, and why.
    """
    heads = getattr(model, "roi_heads", None)
    plain = _plain_config(cfg)
    state = model.state_dict()
    if heads is not None:
        _check_heads(cfg)
        folded = [
            _fold_predictor(predictor, f"of stage {stage}" if len(heads.box_stages) > 1 else "")
            for stage, (_, predictor) in enumerate(heads.box_stages)
        ]
        if folded[0].uses_sigmoid:
            _use_sigmoid(plain)
        for (_, predictor), head in zip(heads.box_stages, folded):
            prefix = next(name for name, part in model.named_modules() if part is predictor)
            state[f"{prefix}.cls_score.weight"] = head.classifier.weight.detach()
            state[f"{prefix}.cls_score.bias"] = head.classifier.bias.detach()
    plain.freeze()
    result = build_model(plain).eval()
    wanted = result.state_dict().keys()
    result.load_state_dict({name: state[name] for name in wanted})
    return plain, result


# ---- the head


def _fold_classifier(classifier: nn.Linear) -> nn.Linear:
    if isinstance(classifier, LearnableWeightScaling):
        return classifier.fold()
    if type(classifier) is not nn.Linear:
        raise ExportError(
            f"a {type(classifier).__name__} divides the features of each region by their length, "
            "which no Linear layer does: " + _elsewhere()
        )
    return classifier


@torch.no_grad()
def _kind(loss: ClassificationLoss, classifier: nn.Linear) -> str:
    """ "softmax" or "sigmoid", whichever the scores are, seen on probes."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(8, loss.num_logits, generator=generator)
    logits = logits.to(classifier.weight)
    scores = loss.scores(logits)
    if logits.shape == scores.shape and torch.allclose(scores, (_scale(loss) * logits).softmax(1)):
        return "softmax"
    own = loss.num_classes
    if loss.num_logits <= own + 1 and torch.allclose(scores[:, :own], logits[:, :own].sigmoid()):
        return "sigmoid"
    name = type(loss).__name__
    reason = REASONS.get(name, "scores by another function of the logits")
    raise ExportError(
        f"{name} {reason}, which is neither a softmax nor a sigmoid of W x + b: " + _elsewhere()
    )


def _scale(loss: ClassificationLoss) -> float:
    """Factor of the logits in the softmax of the scores."""
    return loss.scale if isinstance(loss, LDAMLoss) else 1.0


@torch.no_grad()
def _fold_softmax(
    linear: nn.Linear, loss: ClassificationLoss, calibration: Calibration | None
) -> nn.Linear:
    weight, bias = linear.weight.double(), linear.bias.double()
    weight, bias = weight * _scale(loss), bias * _scale(loss)
    if isinstance(calibration, TauNorm) and calibration.background in FOLDED_TAU_NORMS:
        drop_bias = calibration.background is BackgroundStrategy.DROP_BIAS
        weight = tau_normalize(weight, calibration.tau, keep_background=not drop_bias)
        bias = torch.zeros_like(bias) if drop_bias else bias
    elif isinstance(calibration, NorCal) and calibration.divide == "logits":
        factors = _with_one(calibration.factors)
        weight, bias = weight / factors[:, None], bias / factors
    elif isinstance(calibration, NorCal) and calibration.normalize:
        bias = bias - _with_one(calibration.factors).log()
    elif calibration is not None:
        raise ExportError(_why_not(calibration) + _elsewhere())
    return _linear(weight, bias, linear)


def _with_one(factors: Tensor) -> Tensor:
    """(K+1,) float64 factors of the classes, and 1 for the background."""
    return torch.cat([factors.double(), factors.new_ones(1, dtype=torch.float64)])


def _why_not(calibration: Calibration) -> str:
    name = type(calibration).__name__
    if isinstance(calibration, TauNorm):
        return (
            f"TauNorm with the background {calibration.background.value!r} combines the scores of "
            "two classifiers for each region; with 'none' or 'drop_bias' it is one: "
        )
    if isinstance(calibration, NorCal):
        return "NorCal without NORMALIZE gives scores that do not sum to 1, which no softmax does: "
    return f"{name} scores a region by more than a softmax of W x + b: "


@torch.no_grad()
def _with_background(linear: nn.Linear) -> nn.Linear:
    weight = torch.cat([linear.weight, torch.zeros_like(linear.weight[:1])])
    bias = torch.cat([linear.bias, torch.full_like(linear.bias[:1], NEVER)])
    return _linear(weight, bias, linear)


@torch.no_grad()
def _linear(weight: Tensor, bias: Tensor, like: nn.Linear) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0]).to(like.weight)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear


def _fold_predictor(predictor: nn.Module, where: str) -> PlainHead:
    if not isinstance(predictor, LongTailFastRCNNOutputLayers):
        raise ExportError(f"the box predictor {where} is Detectron2's own: nothing is to be folded")
    if predictor.uses_proposal_score:
        raise ExportError(
            "LONG_TAIL.PROPOSAL_SCORE multiplies scores by those of the proposals, which "
            "Detectron2's heads do not: " + _elsewhere()
        )
    return fold(predictor.cls_score, predictor.classification_loss, predictor.calibration)


# ---- the detector


def _plain_config(cfg: CfgNode) -> CfgNode:
    """Detectron2's config for the same inference, without any key of ours."""
    plain = get_cfg()
    for name in INFERENCE_NODES:
        plain[name] = cfg[name].clone()
    plain.defrost()
    plain.MODEL.ROI_HEADS.NAME = HEADS.get(cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NAME)
    if plain.MODEL.META_ARCHITECTURE == "LongTailRetinaNet":
        plain.MODEL.META_ARCHITECTURE = "RetinaNet"
    for node in (plain.MODEL.ROI_BOX_HEAD, plain.MODEL.RETINANET):
        if node.BBOX_REG_LOSS_TYPE not in DETECTRON2_BOX_LOSSES:
            node.BBOX_REG_LOSS_TYPE = "smooth_l1"  # nothing at test time
    return plain


def _check_heads(cfg: CfgNode) -> None:
    name = cfg.MODEL.ROI_HEADS.NAME
    if name not in HEADS:
        raise ExportError(
            f"MODEL.ROI_HEADS.NAME {name!r} has no counterpart in Detectron2 with the same "
            f"inference (only {', '.join(HEADS)} have): " + _elsewhere()
        )
    if cfg.LONG_TAIL.MASK_NORM.ENABLED:
        raise ExportError(
            "LONG_TAIL.MASK_NORM divides the features of each pixel by their length, which no "
            "convolution does: " + _elsewhere()
        )
    if name == "LongTailCascadeROIHeads" and cfg.LONG_TAIL.CASCADE_AVERAGE != "scores":
        raise ExportError(
            "LONG_TAIL.CASCADE_AVERAGE logits is not how Detectron2 averages stages: "
            + _elsewhere()
        )


def _use_sigmoid(plain: CfgNode) -> None:
    if "use_sigmoid_ce" not in inspect.signature(FastRCNNOutputLayers.__init__).parameters:
        raise ExportError(
            "this method scores by sigmoids, and the box predictor of the installed Detectron2 has "
            "a softmax only (its main branch has MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE): export with "
            "that version, or " + _elsewhere()
        )
    plain.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True


def _elsewhere() -> str:
    return "export it as torchscript or onnx, which hold any method"
