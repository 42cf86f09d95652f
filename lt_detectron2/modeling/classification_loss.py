"""From the config to a loss: the only place where its name becomes an object."""

from __future__ import annotations

import inspect
from typing import Any

from detectron2.config import CfgNode

from .. import losses
from ..errors import ConfigError
from ..losses.base import ClassificationLoss
from ..ops.implementations import IMPLEMENTATIONS, triton_obstacle
from ..statistics import ClassStatistics
from .components import build, find, takes_statistics


def loss_classes() -> dict[str, type[ClassificationLoss]]:
    """All losses that a config can name, by name."""
    exported = ((name, getattr(losses, name)) for name in losses.__all__)
    return {
        name: value
        for name, value in exported
        if inspect.isclass(value) and issubclass(value, ClassificationLoss)
    }


def needs_statistics(loss_class: type[ClassificationLoss]) -> bool:
    """Whether the loss is made from counts of the training set."""
    return takes_statistics(loss_class)


def find_loss(name: str) -> type[ClassificationLoss]:
    """The loss of this name. Raises ConfigError with the list of names if there is none."""
    return find("LONG_TAIL.LOSS.NAME", name, loss_classes())


def build_classification_loss(
    cfg: CfgNode, statistics: ClassStatistics | None
) -> ClassificationLoss:
    """
    The loss ``LONG_TAIL.LOSS.NAME`` with the hyper-parameters of its node.

    Args:
        cfg: needs MODEL.ROI_HEADS.NUM_CLASSES and LONG_TAIL.LOSS.
        statistics: counts of the training set; None is enough for losses that use none.

    Raises:
        ConfigError: unknown name, a hyper-parameter out of range, or statistics missing.
    """
    name = cfg.LONG_TAIL.LOSS.NAME
    loss_class = find_loss(name)
    wired: list[Any] = [cfg.MODEL.ROI_HEADS.NUM_CLASSES]
    if needs_statistics(loss_class):
        if statistics is None:
            raise ConfigError(
                f"{name} is made from the class counts of the training set, and none were found: "
                "make DATASETS.TRAIN readable, or set LONG_TAIL.STATISTICS to a checkpoint or a "
                "class_statistics.json of the training"
            )
        wired.append(statistics)
    loss = build(f"LONG_TAIL.LOSS.{name}", loss_class, cfg.LONG_TAIL.LOSS[name], *wired)
    loss.implementation = _checked_implementation(cfg.LONG_TAIL.LOSS.IMPLEMENTATION)
    return loss


def _checked_implementation(name: str) -> str:
    if name not in IMPLEMENTATIONS:
        raise ConfigError(
            f"LONG_TAIL.LOSS.IMPLEMENTATION is {name!r}, expected one of: "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    obstacle = triton_obstacle() if name == "triton" else None
    if obstacle:
        raise ConfigError(
            f"LONG_TAIL.LOSS.IMPLEMENTATION is triton, but {obstacle}: leave it at auto, which "
            "uses Triton where it can"
        )
    return name
