"""The training loss on the validation set, measured without leaving a trace in the training."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from ..data.images import CheckedMapper
from ..data.validate import check_masks
from ..errors import ConfigError, about
from ..losses.base import ClassificationLoss
from ..progress import track
from ..random_state import keeping_random_state
from .non_finite import check_weights_are_finite, explaining_proposals

logger = logging.getLogger(__name__)

PREFIX = "validation/"
PERIOD_KEY = "LONG_TAIL.VALIDATION_LOSS_PERIOD"


class ValidationLoss(HookBase):
    """
    Logs ``validation/total_loss`` and its terms: the mean over the images of ``DATASETS.TEST``.

    Images come as for testing, without augmentation; regions are sampled as in training, with the
    same random numbers at each measurement. Nothing of the training changes by it: neither its
    random numbers, nor the state of losses and normalisation layers, nor what it logs. Asked to
    stop, a training does not measure to the end.

    Args:
        cfg: names the sets, and the period ``LONG_TAIL.VALIDATION_LOSS_PERIOD``.
        model: whose losses are measured.

    Raises:
        ConfigError: there are no annotated images, or proposals are read from files.
        DatasetError: masks are trained on, and objects lack them.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        problem = None
        if comm.is_main_process():  # refused now, not at the first measurement
            try:
                _annotated_records(cfg)
            except Exception as error:  # whatever it is, the other processes must not wait for it
                problem = error
        problem = comm.all_gather(problem)[0]
        if problem is not None:
            raise problem
        self._cfg = cfg
        self._model = model
        self._period = cfg.LONG_TAIL.VALIDATION_LOSS_PERIOD

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            check_weights_are_finite(self._model, "no validation loss")
            with self.trainer.saving_before_stop():
                losses = validation_losses(self._cfg, self._model, self.trainer.stop.at_once)
            total = {"total_loss": sum(losses.values())}
            self.trainer.storage.put_scalars(
                **{PREFIX + name: value for name, value in (losses | total).items()},
                smoothing_hint=False,
            )
            logger.info("Validation loss: %.4f", total["total_loss"])


def validation_losses(
    cfg: CfgNode,
    model: nn.Module,
    interruptible: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, float]:
    """
    Mean of each term of the loss over the images of ``DATASETS.TEST``. A collective.

    Args:
        cfg: names the sets.
        model: is left as it was.
        interruptible: inside, an exception may come at any moment; what restores is outside.
    """
    model = getattr(model, "module", model)  # nothing is to be reduced between gradients
    seed = max(cfg.SEED, 0)
    with keeping_random_state(), computing_losses(model), EventStorage(), interruptible():
        torch.manual_seed(seed)
        sums: dict[str, float] = defaultdict(float)
        loader, num_images = _annotated_images(cfg)
        batches = track(loader, "validation loss", quiet=not comm.is_main_process())
        for position, batch in enumerate(batches):
            image = f"image {batch[0]['image_id']!r} of {', '.join(cfg.DATASETS.TEST)}"
            with explaining_proposals(f"validation loss, {image}"):
                losses = model(batch)
            if position * comm.get_world_size() + comm.get_rank() < num_images:  # not padding
                for name, value in losses.items():
                    sums[name] += float(value)
    gathered = comm.all_gather(dict(sums))
    names = list(dict.fromkeys(name for part in gathered for name in part))
    return {name: sum(part.get(name, 0.0) for part in gathered) / num_images for name in names}


@contextmanager
def computing_losses(model: nn.Module) -> Iterator[None]:
    """Within, a detector returns losses, without gradients; afterwards it is what it was."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # RetinaNet's running number of positive anchors is no buffer.
    normalizer = vars(model).get("loss_normalizer")
    model.train()
    for module in model.modules():
        if isinstance(module, _DIFFERENT_IN_TRAINING):
            module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        if normalizer is not None:
            model.loss_normalizer = normalizer


_DIFFERENT_IN_TRAINING = (
    ClassificationLoss,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
)
"""What must run as for testing, though the detector is to return losses."""


def _annotated_images(cfg: CfgNode) -> tuple[Iterable[list[Mapping[str, Any]]], int]:
    """This process's batches of one image, as many in all processes, and the number of images."""
    records = _annotated_records(cfg)
    mapper = DatasetMapper(
        is_train=True,
        augmentations=build_augmentation(cfg, is_train=False),
        image_format=cfg.INPUT.FORMAT,
        use_instance_mask=cfg.MODEL.MASK_ON,
        instance_mask_format=cfg.INPUT.MASK_FORMAT,
        use_keypoint=cfg.MODEL.KEYPOINT_ON,
    )
    # Losses may sum over processes in each step, so that all take as many; more than there are
    # images begin anew, and are not counted.
    world_size = comm.get_world_size()
    steps = math.ceil(len(records) / world_size)
    mine = [(step * world_size + comm.get_rank()) % len(records) for step in range(steps)]
    loader = build_detection_test_loader(
        records,
        mapper=CheckedMapper(mapper),
        sampler=mine,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return loader, len(records)


def _annotated_records(cfg: CfgNode) -> list[dict[str, Any]]:
    """The annotated images of ``DATASETS.TEST``, with all that a loss needs."""
    sets = tuple(cfg.DATASETS.TEST)
    if not sets:
        raise ConfigError(
            f"{PERIOD_KEY} needs annotated images, and DATASETS.TEST is empty: name a validation "
            "set, or set the period to 0"
        )
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ConfigError(
            f"{PERIOD_KEY} needs proposals of the detector's own, and MODEL.LOAD_PROPOSALS is "
            "True: set it to False, or the period to 0"
        )
    records = [
        record
        for record in get_detection_dataset_dicts(sets, filter_empty=False)
        if "annotations" in record
    ]
    if not records:
        raise ConfigError(
            f"{PERIOD_KEY} needs annotated images, and DATASETS.TEST {sets} has none: name a "
            "validation set, or set the period to 0"
        )
    if cfg.MODEL.MASK_ON:
        with about(PERIOD_KEY):
            check_masks(records, " and ".join(sets))
    return records
