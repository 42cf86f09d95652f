"""Which combinations of components make no sense, said in a sentence each before anything runs."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from ..errors import ConfigError
from ..losses.base import ClassificationLoss
from ..losses.harmonic import HarmonicCoupling
from .box_losses import BOX_LOSSES, DETECTRON2_BOX_LOSSES
from .classification_loss import find_loss
from .components import calibrations, classifiers, find, ranking_losses
from .swin import check_swin

CASCADE_AVERAGES = ("scores", "logits")
DETECTRON2_HEADS = ("StandardROIHeads", "CascadeROIHeads", "Res5ROIHeads")


def check_composition(cfg: CfgNode) -> None:
    """
    Raise ConfigError for a name that does not exist, or components that do not go together.

    What shows only in the components themselves is refused where they are built.
    """
    node = cfg.LONG_TAIL
    find_loss(node.LOSS.NAME)
    find("LONG_TAIL.CLASSIFIER.NAME", node.CLASSIFIER.NAME, classifiers())
    if node.RANKING.NAME:
        find("LONG_TAIL.RANKING.NAME", node.RANKING.NAME, ranking_losses())
    if node.CALIBRATION.NAME:
        find("LONG_TAIL.CALIBRATION.NAME", node.CALIBRATION.NAME, calibrations())
    check_swin(cfg)
    _check_architecture(cfg)
    _check_cascade(cfg)
    _check_masks(cfg)
    if node.HARMONIC.ENABLED:
        _check_coupling(cfg)
    if node.CLASSIFIER.NAME == "CosineLinear":
        _check_cosine_classifier(cfg)


def check_harmonic(harmonic: HarmonicCoupling | None, loss: ClassificationLoss) -> None:
    """Raise ConfigError if task contrast is asked for and the loss's scores do not sum to 1."""
    if harmonic is None or not harmonic.task_contrast:
        return
    total = loss.scores(torch.linspace(-1, 1, loss.num_logits)[None]).sum().item()
    if abs(total - 1) > 1e-4:
        raise ConfigError(
            "LONG_TAIL.HARMONIC.TASK_CONTRAST needs the entropy of a distribution over classes, "
            f"and {type(loss).__name__} scores classes one by one: use a softmax loss, or switch "
            "TASK_CONTRAST off"
        )


def _check_architecture(cfg: CfgNode) -> None:
    used = _used_keys(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "LongTailRetinaNet":
        _check_box_loss("MODEL.RETINANET", cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE)
        other = [key for key in used if key != "LONG_TAIL.HARMONIC.ENABLED"]
        if other:
            raise ConfigError(
                f"LongTailRetinaNet does not know {other[0]}: it trains its own focal loss "
                "(MODEL.RETINANET.FOCAL_LOSS_*), which LONG_TAIL.HARMONIC can couple, and takes "
                "MODEL.RETINANET.BBOX_REG_LOSS_TYPE; for all else use LongTailROIHeads"
            )
        if cfg.LONG_TAIL.HARMONIC.TASK_CONTRAST:
            raise ConfigError(
                "LONG_TAIL.HARMONIC.TASK_CONTRAST needs a distribution over classes, and RetinaNet "
                "scores them one by one: switch TASK_CONTRAST off"
            )
        return
    if used and cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        raise ConfigError(f"{used[0]} has no effect on RetinaNet: use LongTailRetinaNet")
    if used and cfg.MODEL.ROI_HEADS.NAME in DETECTRON2_HEADS:
        raise ConfigError(
            f"{used[0]} has no effect on MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME!r}: use "
            "LongTailROIHeads or LongTailCascadeROIHeads"
        )
    _check_box_loss("MODEL.ROI_BOX_HEAD", cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE)


def _used_keys(cfg: CfgNode) -> list[str]:
    """Keys by which a config asks for more than Detectron2's own heads can do."""
    node = cfg.LONG_TAIL
    asked = {
        "LONG_TAIL.LOSS.NAME": node.LOSS.NAME != "SoftmaxCrossEntropyLoss",
        "LONG_TAIL.RANKING.NAME": bool(node.RANKING.NAME),
        "LONG_TAIL.CLASSIFIER.NAME": node.CLASSIFIER.NAME != "Linear",
        "LONG_TAIL.CALIBRATION.NAME": bool(node.CALIBRATION.NAME),
        "LONG_TAIL.PROPOSAL_SCORE": node.PROPOSAL_SCORE,
        "LONG_TAIL.CASCADE_AVERAGE": node.CASCADE_AVERAGE != CASCADE_AVERAGES[0],
        "LONG_TAIL.MASK_NORM.ENABLED": node.MASK_NORM.ENABLED,
        "LONG_TAIL.HARMONIC.ENABLED": node.HARMONIC.ENABLED,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": (
            cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE not in DETECTRON2_BOX_LOSSES
        ),
    }
    return [key for key, is_asked in asked.items() if is_asked]


def _check_box_loss(key: str, name: str) -> None:
    if name not in BOX_LOSSES:
        raise ConfigError(
            f"{key}.BBOX_REG_LOSS_TYPE is {name!r}, expected one of: {', '.join(BOX_LOSSES)}"
        )


def _check_cascade(cfg: CfgNode) -> None:
    average = cfg.LONG_TAIL.CASCADE_AVERAGE
    if average not in CASCADE_AVERAGES:
        raise ConfigError(
            f"LONG_TAIL.CASCADE_AVERAGE is {average!r}, expected one of: "
            f"{', '.join(CASCADE_AVERAGES)}"
        )


def _check_masks(cfg: CfgNode) -> None:
    if cfg.LONG_TAIL.MASK_NORM.ENABLED and not cfg.MODEL.MASK_ON:
        raise ConfigError(
            "LONG_TAIL.MASK_NORM is a mask predictor, and MODEL.MASK_ON is False: set MASK_ON, or "
            "switch MASK_NORM off"
        )


def _check_coupling(cfg: CfgNode) -> None:
    """Factors of gradients must be of the size the formula says; constant ones may have any."""
    name = cfg.LONG_TAIL.LOSS.NAME
    node = cfg.LONG_TAIL.LOSS[name]
    if node.get("LOSS_CEILING") is not None:
        raise ConfigError(
            f"LONG_TAIL.HARMONIC couples single regions, and LONG_TAIL.LOSS.{name}.LOSS_CEILING "
            "bounds their mean: set it to None"
        )
    if cfg.LONG_TAIL.HARMONIC.DETACH:
        return
    if name == "GroupSoftmaxLoss":
        raise ConfigError(
            "LONG_TAIL.HARMONIC weighs a box by the loss of its region as if that were -log of a "
            "probability; GroupSoftmaxLoss sums it over groups with a normaliser each: set "
            "LONG_TAIL.HARMONIC.DETACH True"
        )
    if node.get("NORMALIZER", "regions") != "regions":
        raise ConfigError(
            "LONG_TAIL.HARMONIC weighs a box by the loss of its region, which must have the box "
            f"loss's normaliser: set LONG_TAIL.LOSS.{name}.NORMALIZER regions, or "
            "LONG_TAIL.HARMONIC.DETACH True"
        )


def _check_cosine_classifier(cfg: CfgNode) -> None:
    temperature = cfg.LONG_TAIL.CLASSIFIER.CosineLinear.TEMPERATURE
    scale = cfg.LONG_TAIL.LOSS.LDAMLoss.SCALE
    if cfg.LONG_TAIL.LOSS.NAME == "LDAMLoss" and temperature != 1 and scale != 1:
        raise ConfigError(
            f"LDAMLoss multiplies cosines by its scale {scale:g}, and CosineLinear has done so "
            f"with its temperature {temperature:g}: set "
            "LONG_TAIL.CLASSIFIER.CosineLinear.TEMPERATURE 1.0"
        )
