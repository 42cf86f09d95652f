"""A trained detector from its checkpoint: no data set is registered, no annotation is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import Instances

from ..data.statistics import read_statistics
from ..errors import CheckpointError, ConfigError, DatasetError
from ..statistics import GROUP_NAMES, ClassStatistics
from .blame import build_model_or_blame
from .checkpoint import LongTailCheckpointer
from .class_means import prepare_calibration
from .setup import CONFIG_FILE, WITHOUT_DATA, load_config


class Detector:
    """
    A detector with the names and groups of its classes, which its checkpoint carries.

    Args:
        weights: a checkpoint that a training of this library has written.
        config_file: that it was trained with; by default ``config.yaml`` beside the checkpoint.
        overrides: config keys and values. ``LONG_TAIL.STATISTICS`` gives the counts of a checkpoint
            that has none; ``LONG_TAIL.ALLOW_PICKLE`` counts here only, not in a config file, which
            may come from whoever made the checkpoint.
        class_names: K names, for a checkpoint that has none.

    Attributes:
        statistics: counts of the training set.
        class_names: K names.
        groups: "rare", "common" or "frequent" for each of the K classes.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, without names, or of another model.
        DatasetError: no counts in the file that ``LONG_TAIL.STATISTICS`` names.
        ConfigError: no config, or one that does not fit.
    """

    def __init__(
        self,
        weights: str | Path,
        config_file: str | Path = "",
        overrides: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
    ):
        weights = str(weights)
        counts = dict(zip(overrides[::2], overrides[1::2])).get("LONG_TAIL.STATISTICS") or weights
        self.statistics = _statistics_of(weights, counts)
        names = class_names or self.statistics.class_names
        if not names:
            raise CheckpointError(
                f"{counts!r} holds counts of {self.statistics.num_classes} classes but not their "
                "names: give a file of names, one a line (--names)"
            )
        if len(names) != self.statistics.num_classes:
            raise CheckpointError(
                f"expected {self.statistics.num_classes} class names, as many as {counts!r} has "
                f"classes, got {len(names)}"
            )
        self.class_names = tuple(names)
        self.groups = tuple(GROUP_NAMES[g] for g in self.statistics.frequency_group().tolist())
        self.cfg = _config_of(weights, str(config_file), overrides)
        self.model = build_model_or_blame(self.cfg).eval()
        checkpointer = LongTailCheckpointer(
            self.model, allow_pickle=self.cfg.LONG_TAIL.ALLOW_PICKLE
        )
        checkpointer.strict = True
        checkpointer.load(weights)
        prepare_calibration(self.cfg, self.model)
        self._resize = T.AugmentationList(build_augmentation(self.cfg, is_train=False))

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """
        What is on an image, the best first, on the CPU.

        Args:
            image: (height, width, 3) uint8, RGB.
        """
        height, width = image.shape[:2]
        (output,) = self.model([{"image": self.pixels(image), "height": height, "width": width}])
        found = output["instances"].to("cpu")
        return found[found.scores.argsort(descending=True)]

    def pixels(self, image: np.ndarray) -> torch.Tensor:
        """(3, H, W) what the model is given of an image: resized, channels as INPUT.FORMAT says."""
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        resized = T.AugInput(np.ascontiguousarray(image))
        self._resize(resized)
        return torch.as_tensor(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))


def _statistics_of(weights: str, counts: str) -> ClassStatistics:
    if not os.path.isfile(weights):
        raise CheckpointError(f"no checkpoint at {weights!r}: give the model_final.pth of a run")
    if counts != weights:
        return read_statistics(counts)
    try:
        return read_statistics(weights)
    except DatasetError as error:
        raise CheckpointError(
            f"expected a checkpoint that train_net.py has written, with its classes: {error}"
        ) from error


def _config_of(weights: str, config_file: str, overrides: Sequence[str]) -> CfgNode:
    config_file = config_file or os.path.join(os.path.dirname(weights), CONFIG_FILE)
    if not os.path.isfile(config_file):
        raise ConfigError(
            f"no config {config_file!r}: give the one that the checkpoint was trained with "
            "(--config-file)"
        )
    own = ["MODEL.WEIGHTS", weights, "LONG_TAIL.STATISTICS", weights]
    own += ["LONG_TAIL.ALLOW_PICKLE", "False"]  # only overrides can allow it
    # Class means of a nearest class mean classifier lie beside its checkpoint.
    own += ["OUTPUT_DIR", os.path.dirname(weights) or "."]
    if not torch.cuda.is_available():
        own += ["MODEL.DEVICE", "cpu"]
    return load_config(config_file, [*WITHOUT_DATA, *own, *overrides])
