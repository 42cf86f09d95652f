"""
Class statistics of the annotations that the trainer really uses.

Counted once, by the main process, cached beside the annotation file under the hash of its content
if that is all the counts follow from, and handed to everybody else.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..environment import warn_of_old_torch
from ..errors import ConfigError, DatasetError, reason
from ..files import replacing
from ..statistics import GROUP_NAMES, ClassStatistics
from .digest import file_digest
from .image_classes import ImageClasses
from .shared_records import LOADERS, loader_module, parse_once
from .validate import usable_records

logger = logging.getLogger(__name__)

CACHE_VERSION = 1
COUNTED_LOADERS = (
    *LOADERS,
    "lt_detectron2.data.datasets.coco_lt",
    "lt_detectron2.data.datasets.synthlt",
)
"""Modules whose counts follow from the ``json_file`` of a set alone; others may read anything."""

STATISTICS_KEY = "class_statistics"
"""Where a checkpoint of ours keeps the counts of its training set."""


@runtime_checkable
class CountedRecords(Protocol):
    """
    Records that know their counts without a dict of every image, and have checked their boxes.

    What a data set's loader may return instead of a list. Its metadata may name ``counted_files``,
    all those that the counts follow from: then they are cached beside the first.
    """

    def class_statistics(self) -> ClassStatistics:
        """Counts of the annotations that are trained on."""


def training_statistics(cfg: CfgNode, required: bool = True) -> ClassStatistics | None:
    """
    The statistics that the losses and samplers of this config are made from.

    From ``LONG_TAIL.STATISTICS`` if set (a checkpoint of ours, or a JSON file of counts), else
    counted from DATASETS.TRAIN.

    Args:
        cfg: a config with our keys.
        required: count if nobody has yet. Otherwise the answer is None then: who only wants to
            name groups in a log should not read a gigabyte of annotations for it.

    Raises:
        DatasetError: annotations missing, unreadable or wrong.
        ConfigError: the counts are of another number of classes than NUM_CLASSES.
    """
    names = tuple(cfg.DATASETS.TRAIN)
    if cfg.LONG_TAIL.STATISTICS:
        statistics = read_statistics(cfg.LONG_TAIL.STATISTICS)
    elif required:
        statistics = dataset_statistics(names)
    else:
        statistics = _known.get(names)
    if statistics is not None:
        _check_num_classes(cfg, statistics)
    return statistics


def prepare_statistics(cfg: CfgNode) -> ClassStatistics:
    """
    :func:`training_statistics` for a job of several processes: one counts, all receive.

    Every process must call it. Where counting fails, all processes raise the same error.
    """
    outcome: dict[str, Any] = {}
    if comm.is_main_process():
        try:
            outcome = {"statistics": training_statistics(cfg).state_dict()}
        except Exception as error:  # whatever it is, the other processes must not wait for it
            outcome = {"error": error}
    outcome = comm.all_gather(outcome)[0]
    if "error" in outcome:
        raise outcome["error"]
    statistics = ClassStatistics.from_state_dict(outcome["statistics"])
    if not cfg.LONG_TAIL.STATISTICS:
        _known[tuple(cfg.DATASETS.TRAIN)] = statistics
    return statistics


_known: dict[tuple[str, ...], ClassStatistics] = {}
"""What this process has counted or received, by names of data sets."""


def dataset_statistics(names: tuple[str, ...]) -> ClassStatistics:
    """Statistics of registered data sets taken together, from memory, cache or annotations."""
    if not names:
        raise DatasetError(
            "DATASETS.TRAIN is empty and LONG_TAIL.STATISTICS is not set: name the training set, "
            "or give a checkpoint that holds its counts"
        )
    if names not in _known:
        _known[names] = sum_statistics([_one_dataset(name) for name in names])
    return _known[names]


def count_classes(
    records: Sequence[dict[str, Any]], num_classes: int, class_names: Sequence[str] | None = None
) -> ClassStatistics:
    """
    Count Detectron2 dataset records. Crowds are not counted: no mapper trains on them.

    Args:
        records: dicts with ``annotations``, each with a ``category_id`` in 0..K-1.
        num_classes: K.
        class_names: K names.
    """
    images = ImageClasses.from_records(records, num_classes)
    return ClassStatistics(
        instance_count=images.instance_count,
        image_count=images.image_count,
        num_images=len(torch.unique(images.image)),
        class_names=None if class_names is None else tuple(class_names),
    )


def sum_statistics(parts: Sequence[ClassStatistics]) -> ClassStatistics:
    """Statistics of data sets over the same classes, taken together."""
    first = parts[0]
    for other in parts[1:]:
        if (other.num_classes, other.class_names) != (first.num_classes, first.class_names):
            raise DatasetError(
                "the sets of DATASETS.TRAIN have different classes: bring their annotations to "
                "one list of categories first"
            )
    return ClassStatistics(
        sum(part.instance_count for part in parts),
        sum(part.image_count for part in parts),
        sum(part.num_images for part in parts),
        first.class_names,
    )


def read_statistics(path: str) -> ClassStatistics:
    """
    Counts saved by a training: from a checkpoint (.pth) or from ``class_statistics.json``.

    Raises:
        DatasetError: no such file, or no counts in it.
    """
    if not os.path.isfile(path):
        raise DatasetError(f"LONG_TAIL.STATISTICS: no file {path!r}; give a checkpoint or a JSON")
    if path.endswith(".json"):
        state = _json_statistics(path)
    else:
        state = _checkpoint_statistics(path, os.stat(path).st_mtime_ns)
    if not state:
        raise DatasetError(
            f"{path!r} holds no class statistics: it was not written by this library; set "
            "LONG_TAIL.STATISTICS to the class_statistics.json of a training"
        )
    try:
        return ClassStatistics.from_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DatasetError(
            f"{path!r} holds no usable class statistics ({type(error).__name__}: {error}): give "
            "the class_statistics.json of a training"
        ) from error


def _json_statistics(path: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path!r} is not valid JSON ({reason(error)}): copy it again"
        ) from error


@lru_cache(maxsize=4)
def _checkpoint_statistics(path: str, time_of_change: int) -> dict[str, Any] | None:
    if not path.endswith((".pth", ".pt")):  # zoo files are pickles, and hold no statistics of ours
        return None
    warn_of_old_torch(torch.__version__)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives fail in many ways, and full pickles are refused
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DatasetError(
            f"{path!r} cannot be read for its class counts ({reason}): set LONG_TAIL.STATISTICS to "
            "a class_statistics.json"
        ) from error
    return checkpoint.get(STATISTICS_KEY) if isinstance(checkpoint, dict) else None


def write_statistics(statistics: ClassStatistics, path: str | Path) -> None:
    """Write counts as JSON, whole or not at all."""
    with replacing(path) as file:
        json.dump(statistics.state_dict(), file)


def _one_dataset(name: str) -> ClassStatistics:
    if name not in DatasetCatalog.list():
        known = ", ".join(sorted(DatasetCatalog.list())[:12])
        raise DatasetError(f"no data set is registered as {name!r}; registered are: {known}, ...")
    # A loader may make its own files first (SynthLT does), so look for the cache only after it ran
    # once: the file's hash says whether the counts are still those of its content.
    files = _counted_files(name)
    digest = _digest(files)
    cached = _read_cache(name, files, digest)
    if cached is not None:
        return cached
    records = parse_once(name)
    if isinstance(records, CountedRecords):
        statistics = records.class_statistics()
    else:
        source = MetadataCatalog.get(name).get("json_file") or name
        statistics = _count_records(name, records, source)
    _report(name, statistics)
    _write_cache(name, files, digest or _digest(files), statistics)
    return statistics


def _count_records(name: str, records: Sequence[dict[str, Any]], source: str) -> ClassStatistics:
    class_names = MetadataCatalog.get(name).get("thing_classes")
    if not class_names:
        raise DatasetError(f"{name!r} has no thing_classes: set them in its metadata")
    records = usable_records(records, class_names, source)
    return count_classes(records, len(class_names), class_names)


def _report(name: str, statistics: ClassStatistics) -> None:
    sizes = torch.bincount(statistics.frequency_group(), minlength=len(GROUP_NAMES)).tolist()
    groups = ", ".join(f"{size} {group}" for size, group in zip(sizes, GROUP_NAMES))
    logger.info(
        "%s: %d objects of %d classes in %d images (%s)",
        name,
        int(statistics.instance_count.sum()),
        statistics.num_classes,
        statistics.num_images,
        groups,
    )
    absent = (statistics.image_count == 0).nonzero().flatten().tolist()
    if absent:
        names = statistics.class_names or [str(c) for c in range(statistics.num_classes)]
        listed = ", ".join(names[c] for c in absent[:10])
        logger.warning(
            "%s: %d of %d classes have no training image (%s%s). They cannot be learned and their "
            "AP will be 0 or n/a: add images, or remove the categories.",
            name,
            len(absent),
            statistics.num_classes,
            listed,
            ", ..." if len(absent) > 10 else "",
        )


def classifier_node(cfg: CfgNode) -> str:
    """Node of MODEL whose NUM_CLASSES and SCORE_THRESH_TEST the detector goes by."""
    return "RETINANET" if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE else "ROI_HEADS"


def _check_num_classes(cfg: CfgNode, statistics: ClassStatistics) -> None:
    node = classifier_node(cfg)
    configured = cfg.MODEL[node].NUM_CLASSES
    if configured != statistics.num_classes:
        raise ConfigError(
            f"MODEL.{node}.NUM_CLASSES is {configured}, but the training set has "
            f"{statistics.num_classes} classes: set it to {statistics.num_classes}"
        )


# ---- cache


def _counted_files(name: str) -> tuple[str, ...]:
    """Files that the counts of a set follow from; none where its loader may read others."""
    metadata = MetadataCatalog.get(name)
    files = metadata.get("counted_files", ())
    if not files and loader_module(name) in COUNTED_LOADERS:
        files = (metadata.get("json_file", ""),)
    return tuple(files)


def _digest(files: tuple[str, ...]) -> str:
    """Of the content of all files, or "" if one is missing."""
    digests = [file_digest(file) for file in files]
    return " ".join(digests) if all(digests) else ""


def _cache_path(name: str, files: tuple[str, ...]) -> Path:
    file_name = name.replace(os.sep, "_")  # a name leads nowhere else
    return Path(files[0]).with_name(f"{Path(files[0]).stem}.{file_name}.class_statistics.json")


def _read_cache(name: str, files: tuple[str, ...], digest: str) -> ClassStatistics | None:
    if not digest:
        return None
    try:
        with open(_cache_path(name, files), encoding="utf-8") as file:
            cache = json.load(file)
        if (cache["version"], cache["sha256"]) != (CACHE_VERSION, digest):
            return None
        return ClassStatistics.from_state_dict(cache["statistics"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged; it is only a cache


def _write_cache(
    name: str, files: tuple[str, ...], digest: str, statistics: ClassStatistics
) -> None:
    if not digest:
        return
    cache = {
        "version": CACHE_VERSION,
        "sha256": digest,
        "statistics": statistics.state_dict(),
    }
    try:
        with replacing(_cache_path(name, files)) as file:
            json.dump(cache, file)
    except OSError as error:  # data sets often lie on read-only disks
        logger.info("Class statistics of %s are not cached: %s", name, error)
