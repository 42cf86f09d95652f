"""Rows of ablation tables as differences from a config: `configs/grids.yaml`, expanded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from ..errors import ConfigError
from .runs import REPOSITORY

GRIDS = REPOSITORY / "configs" / "grids.yaml"
ARCHITECTURE = re.compile(r"(faster_rcnn|mask_rcnn|cascade_rcnn|cascade_mask_rcnn|retinanet)_.*$")


@cache
def load_grids() -> dict[str, dict[str, Any]]:
    """
    The grids by the name of their table.

    A grid has `base`, a config below `configs/`; `rows`, each a mapping from config keys to values;
    and perhaps `under`, the node of keys without a dot, and `all`, what its rows share. A row may
    have a base of its own, as `base`.
    """
    grids = yaml.safe_load(GRIDS.read_text(encoding="utf-8"))
    return {name: grid for name, grid in grids.items() if not name.startswith("_")}


def expand(table: str, row: str) -> tuple[str, dict[str, Any]]:
    """
    The name and the content of a config; `_BASE_` is relative to the folder `configs/`.

    Raises:
        ConfigError: there is no such row.
    """
    grid = load_grids().get(table, {})
    if row not in grid.get("rows", {}):
        raise ConfigError(f"{GRIDS.name} has no row {row!r} of {table!r}")
    values = {**grid.get("all", {}), **grid["rows"][row]}
    base = values.pop("base", grid["base"])
    architecture = ARCHITECTURE.search(base.removesuffix(".yaml"))
    if architecture is None:
        raise ConfigError(f"{GRIDS.name}, {table}: base {base!r} does not name its model")
    name = f"{table}_{row}_{architecture.group()}"
    content: dict[str, Any] = {"_BASE_": base}
    for key, value in values.items():
        _set(content, key if "." in key else f"{grid['under']}.{key}", value)
    content.setdefault("OUTPUT_DIR", f"output/papers/{table}/{row}")
    return name, content


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value to a dotted key; mappings are merged into what is there."""
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    if isinstance(value, Mapping):
        for inner, inner_value in value.items():
            _set(content.setdefault(last, {}), inner, inner_value)
    else:
        content[last] = value
