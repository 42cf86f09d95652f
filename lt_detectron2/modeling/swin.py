"""Swin-T with FPN, from a YAML config: Detectron2's main branch has the backbone, 0.6 has not."""

from __future__ import annotations

from importlib import util

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from ..errors import ConfigError

BUILDER = "build_swin_t_fpn_backbone"
SWIN_MODULE = "detectron2.modeling.backbone.swin"


def check_swin(cfg: CfgNode) -> None:
    """Raise ConfigError if a config wants Swin-T, and the environment does not have it."""
    if cfg.MODEL.BACKBONE.NAME != BUILDER:
        return
    if util.find_spec(SWIN_MODULE) is None:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME {BUILDER} needs {SWIN_MODULE}, which this Detectron2 does not "
            "have (0.6 has not, its main branch has): install Detectron2 from source, or take a "
            "config with R_50 or R_101"
        )
    if util.find_spec("timm") is None:
        raise ConfigError(f"Detectron2's {SWIN_MODULE} needs the package timm: install it")


@BACKBONE_REGISTRY.register()
def build_swin_t_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """
    FPN over Swin-T, with Detectron2's defaults: 96 channels, 2, 2, 6 and 2 blocks, windows of 7.

    Reads MODEL.FPN.{IN_FEATURES, OUT_CHANNELS, NORM, FUSE_TYPE}; its features are p0 to p3. Nothing
    of it is frozen, whatever MODEL.BACKBONE.FREEZE_AT says.

    Raises:
        ConfigError: the installed Detectron2 does not have the backbone.
    """
    check_swin(cfg)
    from detectron2.modeling.backbone.swin import SwinTransformer

    node = cfg.MODEL.FPN
    return FPN(
        bottom_up=SwinTransformer(in_chans=input_shape.channels),
        in_features=node.IN_FEATURES,
        out_channels=node.OUT_CHANNELS,
        norm=node.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=node.FUSE_TYPE,
    )
