"""Heads, predictor, backbone and RetinaNet; importing this registers them with Detectron2."""

from . import backbone, loce, retinanet, roi_heads, simcal, swin  # noqa: F401  only registration
