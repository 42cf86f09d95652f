"""What the tests of published configs share: the rows, and what trains each."""

from functools import cache
from pathlib import Path

from lt_detectron2.analysis.grids import expand
from lt_detectron2.analysis.papers import CONFIGS, GRID, all_rows
from lt_detectron2.engine.setup import load_config

ROWS = list(all_rows())
GRID_ROWS = [row for row in ROWS if row.config == GRID]
FILES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.glob("*/*.yaml")
    if path.parent.name not in ("SynthLT", "own_data") and not path.stem.startswith("Base-")
)
NAMES = [*FILES, *(row.name for row in GRID_ROWS)]
"""Of every published config: a file below `configs/`, or a row of the grid."""


@cache
def config_of(name):
    """The config of a file or of a row of the grid, which is not written for it."""
    if name.endswith(".yaml"):
        return load_config(str(CONFIGS / name))
    _, content = expand(*name.split("/"))
    overrides = list(flat(content))
    return load_config(str(CONFIGS / content["_BASE_"]), overrides)


def flat(content, prefix=""):
    """Keys and values for the command line."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif key != "_BASE_":
            yield from (prefix + key, value)


def config_name(name):
    """The name a config file has, or would have."""
    return Path(name).stem if name.endswith(".yaml") else expand(*name.split("/"))[0]


def base_of(name):
    """The file itself, or the file that a row of the grid changes."""
    return name if name.endswith(".yaml") else expand(*name.split("/"))[1]["_BASE_"]
