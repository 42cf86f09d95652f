"""Small detectors with scores that differ, which those of a fresh one hardly do."""

import torch

from lt_detectron2.export.traceable import TraceableDetector
from lt_detectron2.export.write import example_images
from tests.modeling.detectors import small_config, small_detector


def decided(model):
    """The model, with larger weights in its predictors."""
    for _, predictor in model.roi_heads.box_stages:
        with torch.no_grad():
            predictor.cls_score.weight.normal_(std=0.5)
            predictor.cls_score.bias.uniform_(-1, 1)
            predictor.bbox_pred.weight.normal_(std=0.02)
    return model


def config_and_detector(folder, *overrides, heads="LongTailROIHeads", loss="SeesawLoss"):
    cfg = small_config(folder, heads, loss, *overrides)
    return cfg, decided(small_detector(cfg)).eval()


def traceable(folder, *overrides, **choices):
    return TraceableDetector(config_and_detector(folder, *overrides, **choices)[1])


def images():
    return [torch.from_numpy(image).permute(2, 0, 1).float() for image in example_images()]
