"""From a command line to a checked config: whatever is wrong is said before anything is started."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import add_long_tail_config
from ..data.annotation_schema import shown
from ..errors import ConfigError, about, reason
from ..files import replacing
from ..modeling.composition import check_composition
from .checkpoint import LAST_FILE, check_weights
from .own_data import check_image_files, prepare_own_data
from .writers import check_writers

WITHOUT_DATA = (
    *("DATASETS.TRAIN", "()", "DATASETS.TEST", "()"),
    *("LONG_TAIL.DATA.TRAIN", "", "LONG_TAIL.DATA.VAL", ""),
)
"""Overrides for the model of a config whose data need not be on this machine."""

KINDS = {
    "NoneType": "nothing",
    "CfgNode": "a group of keys",
    "str": "a text",
    "int": "an int",
    "bool": "True or False",
}
EXAMPLES = {"float": "2.0", "int": "2", "bool": "True", "tuple": "('a', 'b')"}
"""Of values, by type."""

CONFIG_FILE = "config.yaml"
"""Detectron2's, in OUTPUT_DIR."""

ASIDE = ".of_training."
"""Between that name and the process that has put it aside."""


def load_config(config_file: str, overrides: list[str] | None = None) -> CfgNode:
    """
    Detectron2's defaults, our keys, the file, then the overrides; frozen.

    Without a GPU, MODEL.DEVICE is the CPU unless the user says otherwise. Annotations named in
    LONG_TAIL.DATA are registered, and decide what nobody has set.

    Raises:
        ConfigError: no such file, or a key or value that does not exist.
        DatasetError: annotations of LONG_TAIL.DATA cannot be used.
    """
    cfg = get_cfg()
    add_long_tail_config(cfg)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if config_file and not os.path.isfile(config_file):
        raise ConfigError(f"no config file {config_file!r}: see the folder configs/")
    _check_pairs(overrides or [])
    if config_file:
        with about(config_file):
            _merge_file(cfg, config_file)
    with about("command line"):
        _merge_overrides(cfg, overrides or [])
    prepare_own_data(cfg, keys_set(config_file, overrides or []))
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    try:
        # Detectron2 would fall back on the loader that builds any Python object.
        with _explaining(cfg):
            cfg.merge_from_file(config_file, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{config_file}: {_one_line(error)}: tags that build Python objects are not allowed, "
            "since they can run any program; write plain values"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{config_file} is not valid YAML ({_one_line(error)}): correct it"
        ) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{config_file}, or a _BASE_ of it, cannot be read ({reason(error)}): write a text "
            "file, and no file that is its own base"
        ) from error
    except (TypeError, AttributeError, IndexError) as error:  # Detectron2 takes it for a mapping
        with open(config_file, encoding="utf-8") as file:
            content = yaml.safe_load(file)
        raise ConfigError(f"{config_file}: {_explain_structure(cfg, content)}") from error


def _merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    try:
        with _explaining(cfg):
            cfg.merge_from_list(list(overrides))
    except (TypeError, AttributeError, IndexError) as error:  # a value is taken for a group
        known = set(all_keys(cfg))
        key = next((key for key in overrides[::2] if key not in known), overrides[0])
        raise ConfigError(
            f"config key {key!r} does not exist, and part of it is no group of keys: compare it "
            "with configs/"
        ) from error


@contextlib.contextmanager
def _explaining(cfg: CfgNode) -> Iterator[None]:
    """Say in a ConfigError which key or value cannot be merged into these."""
    try:
        yield
    except (KeyError, AssertionError) as error:
        raise ConfigError(_explain_key_error(cfg, error)) from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        raise  # of a file that is no YAML
    except ValueError as error:
        raise ConfigError(_explain_value_error(error)) from error


def _explain_structure(cfg: CfgNode, content: Any) -> str:
    """What is wrong with a file that has something else in the place of a group of keys."""
    if not isinstance(content, dict):
        found = "an empty file" if content is None else shown(content)
        return f"expected keys and values, found {found}: compare it with configs/SynthLT"
    for key, value in _groups(cfg, content):
        if not isinstance(value, dict):
            return _not_a_group(key, type(value).__name__)
    if not isinstance(content.get("VERSION", 2), int):
        return _wrong_version(cfg)
    return "it or a _BASE_ of it has an unexpected structure: compare it with configs/SynthLT"


def _groups(cfg: CfgNode, content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a file has in the place of each group of keys."""
    for key, value in content.items():
        if isinstance(cfg.get(key), CfgNode):
            yield f"{prefix}{key}", value
            if isinstance(value, dict):
                yield from _groups(cfg[key], value, f"{prefix}{key}.")


def _check_pairs(overrides: Sequence[str]) -> None:
    option = next((part for part in overrides if str(part).startswith("--")), None)
    if option:
        raise ConfigError(
            f"{option} stands behind config keys, where only keys and their values can be: put it "
            "before the first key"
        )
    for key in overrides[::2]:
        if not re.fullmatch(r"[\w.]+", str(key)):
            raise ConfigError(
                f"command line: expected a config key, got {key!r}: write pairs of a key and its "
                "value"
            )
    if len(overrides) % 2:
        raise ConfigError(
            f"expected pairs of a config key and its value, got {len(overrides)} words: "
            f"{' '.join(map(str, overrides))!r}; write values with spaces in quotes"
        )


def _explain_value_error(error: ValueError) -> str:
    types = r"\(<class '([\w.]+)'> vs. <class '([\w.]+)'>\)"
    match = re.search(rf"{types} with values .* for config key: (\S+)", str(error), re.DOTALL)
    if not match:
        return f"{reason(error)}: write values like those in configs/"
    expected, found, key = match.groups()
    if expected.endswith("CfgNode"):
        return _not_a_group(key, found)
    found = KINDS.get(found.split(".")[-1], f"a {found}")
    wanted = KINDS.get(expected, f"a {expected}")
    remedy = f"write one like {EXAMPLES[expected]}" if expected in EXAMPLES else "correct it"
    if (match.group(1), match.group(2)) == ("float", "int"):
        remedy = "write 2.0, not 2, for a number that may be fractional"
    return f"config key {key!r} expects {wanted}, got {found}: {remedy}"


def _wrong_version(cfg: CfgNode) -> str:
    return f"config key 'VERSION' is none that Detectron2 knows: write {cfg.VERSION}"


def _not_a_group(key: str, found: str) -> str:
    found = KINDS.get(found, f"a {found}")
    return f"config key {key!r} stands for a group of keys, got {found}: set one of the group"


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


def keys_set(config_file: str, overrides: Sequence[str]) -> set[str]:
    """The keys that a file, its bases or the overrides set."""
    node = CfgNode.load_yaml_with_base(config_file) if config_file else {}
    return {*all_keys(CfgNode(node)), *overrides[::2]}


def check_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """
    Raise ConfigError for what would end a run later.

    That is an unknown component or data set, parts that do not go together, missing test
    annotations, an output folder that cannot be written.
    """
    given = (getattr(args, "config_file", ""), "command line" if getattr(args, "opts", ()) else "")
    with about(" and ".join(filter(None, given)) or "config"):
        _check(cfg, args)


def _check(cfg: CfgNode, args: argparse.Namespace) -> None:
    check_composition(cfg)
    check_writers(cfg.LONG_TAIL.WRITERS)
    if cfg.SOLVER.CHECKPOINT_PERIOD < 1 and not args.eval_only:
        raise ConfigError(
            f"SOLVER.CHECKPOINT_PERIOD is {cfg.SOLVER.CHECKPOINT_PERIOD}, expected 1 or more "
            "iterations: as many as SOLVER.MAX_ITER save at the end only"
        )
    for key in ("TRAIN", "TEST"):
        names = cfg.DATASETS[key]
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise ConfigError(
                f"DATASETS.{key} is {names!r}, expected names of data sets: write ('name',)"
            )
        for name in names:
            if name not in DatasetCatalog.list():
                hint = _suggest(name, DatasetCatalog.list())
                raise ConfigError(f"data set {name!r} of DATASETS.{key} is not registered{hint}")
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        file = metadata.get("json_file") or metadata.get("annotation_file")
        if file and not metadata.get("generated", False) and not os.path.isfile(file):
            raise ConfigError(
                f"annotations of test set {name!r} are missing: expected {file!r}; put them "
                "there, or set DETECTRON2_DATASETS to the folder that holds your data sets"
            )
    if not cfg.LONG_TAIL.EVAL.PREDICTIONS:
        for name in (*cfg.DATASETS.TEST, *(() if args.eval_only else cfg.DATASETS.TRAIN)):
            check_image_files(name)
    if cfg.MODEL.LOAD_PROPOSALS and not cfg.LONG_TAIL.ALLOW_PICKLE:
        raise ConfigError(
            "MODEL.LOAD_PROPOSALS reads pickles, which can run any program: set "
            "LONG_TAIL.ALLOW_PICKLE True if you trust whoever made DATASETS.PROPOSAL_FILES_*"
        )
    if args.eval_only and not (cfg.MODEL.WEIGHTS or cfg.LONG_TAIL.EVAL.PREDICTIONS):
        raise ConfigError("--eval-only needs a checkpoint: add MODEL.WEIGHTS path/to/model.pth")
    if args.eval_only and not cfg.LONG_TAIL.EVAL.PREDICTIONS:
        check_weights(cfg.MODEL.WEIGHTS)
    _check_writable(cfg.OUTPUT_DIR)


@contextlib.contextmanager
def keeping_config_of_training(folder: str) -> Iterator[None]:
    """
    Whatever is written to the config.yaml of a folder is taken back, if a training has left one.

    An evaluation has no schedule, takes class counts from the checkpoint, and may set test settings
    of its own: its config would no longer be the one that the checkpoints beside it came from.
    """
    config = Path(folder, CONFIG_FILE)
    if not (config.is_file() and Path(folder, LAST_FILE).is_file()):
        yield
        return
    aside = Path(f"{config}{ASIDE}{os.getpid()}")
    with replacing(str(aside), "wb") as file:  # now: afterwards the disk may have no room for it
        file.write(_config_of_training(config))
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):  # a training has begun, with its own config
            aside.replace(config)


def forget_earlier_training(folder: str) -> None:
    """To be called before a training writes its config: evaluations must not bring others back."""
    for aside in _asides(folder):
        aside.unlink(missing_ok=True)


def _config_of_training(config: Path) -> bytes:
    # While another evaluation runs, or if one was killed, config.yaml is that one's.
    for aside in _asides(str(config.parent)):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            return aside.read_bytes()
    return config.read_bytes()


def _asides(folder: str) -> list[Path]:
    found = Path(folder).glob(f"{CONFIG_FILE}{ASIDE}*")
    return [path for path in found if path.suffix[1:].isdigit()]


def _check_writable(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR {folder!r} cannot be written ({error.strerror}): set OUTPUT_DIR to a "
            "folder of yours"
        ) from error


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f": did you mean {', '.join(close)}?" if close else ": register it first"


def _explain_key_error(cfg: CfgNode, error: Exception) -> str:
    if re.search(r"ConverterV|Cannot merge a v", str(error)):
        return _wrong_version(cfg)
    match = re.search(r"[Kk]ey:? '?([\w.]+)'?", str(error))
    if not match:
        return f"{reason(error)}: write keys like those in configs/"
    key = match.group(1).rstrip(".")
    close = difflib.get_close_matches(key, list(all_keys(cfg)), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "compare it with configs/"
    return f"config key {key!r} does not exist; {hint}"


def all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Keys of a config that are no groups, as KEY.OF.GROUP."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from all_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key
