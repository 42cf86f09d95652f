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


def retinanet_config(folder, architecture, *overrides):
    settings = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.MASK_ON", "False"]
    settings += ["MODEL.RETINANET.NUM_CLASSES", "7", "MODEL.RETINANET.NUM_CONVS", "1"]
    settings += ["MODEL.RETINANET.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']"]
    return small_config(
        folder, "LongTailROIHeads", "SoftmaxCrossEntropyLoss", *settings, *overrides
    )


def retinanet(folder, *overrides):
    """With about 60,000 candidates in an image, whose scores differ."""
    model = small_detector(retinanet_config(folder, "LongTailRetinaNet", *overrides)).eval()
    with torch.no_grad():
        model.head.cls_score.weight.normal_(std=0.1)
        model.head.cls_score.bias.uniform_(-1, 1)
        model.head.bbox_pred.weight.normal_(std=0.05)
    return model


def images():
    return [torch.from_numpy(image).permute(2, 0, 1).float() for image in example_images()]
