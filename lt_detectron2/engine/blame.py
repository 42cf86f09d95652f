"""Which key of a config keeps a model or a schedule from being built."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from traceback import walk_tb
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from ..config import add_long_tail_config
from ..data.annotation_schema import shown
from ..errors import ConfigError, UserError, reason
from .setup import all_keys

logger = logging.getLogger(__name__)

T = TypeVar("T")

LIBRARIES = {"lt_detectron2", "detectron2", "torch", "fvcore", "iopath", "numpy"}
"""Packages whose errors in building are taken for the config's; those of others are bugs there."""

NAMED = 3
"""Keys that a message names at most."""

SAYING = (AssertionError, KeyError, ValueError)
"""Errors whose text is meant for users; that of others is about the program."""

OF_THE_PLACE = ("DATASETS", "MODEL.DEVICE", "MODEL.WEIGHTS", "LONG_TAIL.STATISTICS", "OUTPUT_DIR")
"""Keys that say where to run and with what: changing them says nothing about the others."""


def build_model_or_blame(cfg: CfgNode) -> nn.Module:
    """
    Detectron2's ``build_model``.

    Raises:
        ConfigError: keys of the config keep it from working, which the message names.
    """
    return build_or_blame("the model", build_model, cfg)


def build_or_blame(what: str, build: Callable[[CfgNode], T], cfg: CfgNode) -> T:
    """
    ``build(cfg)``, or an error that names the key which keeps it from working.

    Keys are tried one by one with their default: to blame is one with which the error goes away,
    or if there is none, one with which it becomes another. That takes time, but only where nothing
    else can be done.

    Args:
        what: is built, for the message.
        build: makes it from a config, and can be called again.
        cfg: the config.

    Raises:
        ConfigError: some keys are to blame.
        Exception: what ``build`` raised, if no key is, or if it came from a user's own code.
    """
    try:
        return build(cfg)
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        if not _is_of_libraries(error):
            raise
        keys = list(_to_blame(build, cfg, error))
        if not keys:
            raise
        keys = [key for key in keys if key in str(error)] or keys
        given = ", or ".join(f"{key} {shown(_value(cfg, key))}" for key in keys)
        why = reason(error) if isinstance(error, SAYING) else type(error).__name__
        raise ConfigError(
            f"{what} cannot be built with {given} ({why}): correct it, or leave it at its default"
        ) from error


def _is_of_libraries(error: Exception) -> bool:
    modules = {
        frame.f_globals.get("__name__", "").split(".")[0]
        for frame, _ in walk_tb(error.__traceback__)
    }
    return modules <= LIBRARIES | sys.stdlib_module_names - {"__main__"}


def _to_blame(build: Callable[[CfgNode], Any], cfg: CfgNode, error: Exception) -> Iterator[str]:
    defaults = get_cfg()
    add_long_tail_config(defaults)
    cures, changes = [], []
    logger.info("Looking for the key of the config that does not fit")
    changed = [key for key in _changed_keys(cfg, defaults) if not key.startswith(OF_THE_PLACE)]
    missing = [key for key in all_keys(cfg) if _is_choice(key) and _is_missing(cfg, key, error)]
    if missing:  # its default may be nothing that there is either
        return islice(missing, NAMED)
    for key in sorted(changed, key=_is_choice):
        asked_enough = cures or not isinstance(error, SAYING)  # as a bug in what is chosen
        if (_is_choice(key) and asked_enough) or len(cures) == NAMED:
            break
        trial = cfg.clone()
        trial.defrost()
        parent, _, name = key.rpartition(".")
        _value(trial, parent)[name] = _value(defaults, key)
        trial.freeze()
        try:
            with _silent():
                build(trial)
        except UserError:
            continue  # it got not even as far
        except Exception as other:  # anything may be wrong with the rest
            if (type(other), str(other)) != (type(error), str(error)):
                changes.append(key)
        else:
            cures.append(key)
    return islice(cures or changes, NAMED)


def _is_choice(key: str) -> bool:
    """Without the component that it names any of its own keys would do; so it is asked last."""
    return key.endswith(("NAME", "META_ARCHITECTURE"))


def _is_missing(cfg: CfgNode, key: str, error: Exception) -> bool:
    """Whether the error is a registry's, which quotes what it lacks and its own name."""
    *_, node, _ = ["", *key.split(".")]
    return {repr(str(_value(cfg, key))), repr(node)} <= set(re.findall(r"'[^']*'", str(error)))


def _changed_keys(cfg: CfgNode, defaults: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        default = defaults.get(key)
        if isinstance(value, CfgNode):
            if isinstance(default, CfgNode):  # not a group that somebody added
                yield from _changed_keys(value, default, f"{prefix}{key}.")
        elif key in defaults and repr(value) != repr(default):
            yield prefix + key


def _value(cfg: CfgNode, key: str) -> Any:
    value = cfg
    for name in filter(None, key.split(".")):
        value = value[name]
    return value


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
