"""The pass over the training set that fills the feature memory of LOCE."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..modeling.loce import LOCEROIHeads
from ..progress import track
from .class_means import training_images
from .modes import in_test_mode


def fill_feature_memory(cfg: CfgNode, model: nn.Module) -> None:
    """
    Fill the memory of LOCEROIHeads, in place; nothing for all other detectors.

    Every process goes over its part of ``DATASETS.TRAIN``, and memories are not exchanged: in 8
    processes, a class of one image is unknown to 7 of them until it comes up there in training.

    Raises:
        ConfigError: the box head is not frozen.
    """
    model = getattr(model, "module", model)
    heads = getattr(model, "roi_heads", None)
    if not isinstance(heads, LOCEROIHeads):
        return
    quiet = not comm.is_main_process()
    images = track(training_images(cfg), "feature memory", quiet=quiet)
    with in_test_mode(model):
        heads.fill_memory(model, images)
