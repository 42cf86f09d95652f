"""
Trainings of a few milliseconds a step, for tests that train a lot, kill and compare.

The trainer, its data, samplers, losses and checkpoints are the real ones; the detector is a toy
that draws from every generator and has statistics of its own in each process.
"""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from lt_detectron2.data.statistics import training_statistics
from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.modeling.classification_loss import build_classification_loss
from lt_detectron2.modeling.components import build_ranking_loss
from tests.engine.small_set import register
from tests.modeling.detectors import NUM_CLASSES

DATASET = "toy_training_set"
WIDTH = 8
REGIONS = 8
"""Of each image: its objects, and as much background as there is room for."""


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    """Classifies regions by the mean colours of their images."""

    def __init__(self, cfg):
        super().__init__()
        statistics = training_statistics(cfg)
        self.loss = build_classification_loss(cfg, statistics)
        self.ranking_loss = build_ranking_loss(cfg, statistics)
        self.body = nn.Sequential(nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.2))
        self.classifier = nn.Linear(WIDTH, self.loss.num_logits)
        self.loss.init_classifier(self.classifier)

    @property
    def device(self):
        return self.classifier.weight.device

    def forward(self, batch):
        features, targets = [], []
        for image in batch:
            classes = image["instances"].gt_classes
            background = classes.new_full((REGIONS - len(classes),), NUM_CLASSES)
            colour = image["image"].float().mean(dim=(1, 2)) / 255
            features.append(torch.cat([colour.expand(REGIONS, 3), self.noise()], dim=1))
            targets.append(torch.cat([classes, background]))
        features = torch.cat(features).to(self.classifier.weight.dtype)
        logits, targets = self.classifier(self.body(features)), torch.cat(targets)
        losses = {"loss_cls": self.loss(logits, targets)}
        if self.ranking_loss is not None:
            losses["loss_rank"] = self.ranking_loss(self.loss.class_logits(logits), targets).loss
        return losses

    def noise(self):
        """(REGIONS, 3), from all generators that there are."""
        return torch.rand(REGIONS, 3) + np.random.rand() + random.random()


@META_ARCH_REGISTRY.register()
class SteadyToyDetector(ToyDetector):
    """Draws nothing and looks at one image at a time, in float64: processes may share a batch."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.body = nn.Linear(6, WIDTH)
        self.double()

    def noise(self):
        return torch.linspace(0, 1, 3 * REGIONS).reshape(REGIONS, 3)


def config(folder: Path, data: Path, *overrides: Any):
    """20 steps on the small set in ``data``, with a checkpoint after 10, in ``folder``."""
    if DATASET not in DatasetCatalog.list():
        annotations = Path(data, f"{DATASET}.json")
        if annotations.exists():  # another process has made it
            register_coco_instances(DATASET, {}, str(annotations), str(data))
        else:
            register(DATASET, Path(data))
    return load_config(
        "",
        ["MODEL.META_ARCHITECTURE", "ToyDetector", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
        + ["MODEL.ROI_HEADS.NUM_CLASSES", str(NUM_CLASSES), "DATASETS.TRAIN", f"('{DATASET}',)"]
        + ["DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]
        + ["INPUT.MIN_SIZE_TRAIN", "(16, 20, 24)", "SOLVER.MAX_ITER", "20", "SEED", "1"]
        + ["SOLVER.CHECKPOINT_PERIOD", "10", "SOLVER.BASE_LR", "0.05"]
        + ["DATALOADER.REPEAT_THRESHOLD", "0.5", "LONG_TAIL.WRITERS", "['json']"]
        + ["OUTPUT_DIR", str(folder), *map(str, overrides)],
    )


class Interruption(HookBase):
    """
    What happens to a training after a step.

    Args:
        iteration: of the step.
        what: a signal to send, or an exception to raise.
        rank: the process that it happens in; None is each.
        pid: the process that gets the signal, if it is another one.
        times: how often it is sent.
    """

    def __init__(self, iteration, what, *, rank=None, pid=None, times=1):
        self.iteration, self.what, self.rank = iteration, what, rank
        self.pid, self.times = pid, times

    def after_step(self):
        if self.trainer.iter != self.iteration or self.rank not in (None, comm.get_rank()):
            return
        if isinstance(self.what, BaseException):
            raise self.what
        for _ in range(self.times):
            os.kill(self.pid or os.getpid(), self.what)


def train(cfg, resume: bool = False, interruption: Interruption | None = None) -> LongTailTrainer:
    """A training from the command line on, without the command line."""
    seed_all_rng(cfg.SEED + comm.get_rank())
    trainer = LongTailTrainer(cfg)
    if interruption is not None:
        trainer.register_hooks([interruption])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer
