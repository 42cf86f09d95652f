"""
Training records that are parsed once, not by every process of every training.

The first process of a machine parses the annotation file and keeps the records in a file of a form
that can be mapped (`record_store.py`); the others, their workers and later trainings map that. It
lies beside the annotations, or where that cannot be, in a folder of the user for temporary files;
`LT_DETECTRON2_RECORDS` names another folder, or is "off".
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import detectron2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.utils import comm

from ..errors import DatasetError
from . import record_store
from .datasets.annotation_json import AnnotationSummary, known_summary, remember_summary
from .digest import file_digest
from .record_store import Record, RecordStore, SharedRecords
from .validate import load_records

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "LT_DETECTRON2_RECORDS"
VERSION = 2

WORTH_KEEPING = 32 << 20
"""Bytes of an annotation file below which parsing it takes no time worth a file."""

LOADERS = (
    "detectron2.data.datasets.coco",
    "detectron2.data.datasets.lvis",
    "lt_detectron2.data.datasets.custom",
)
"""Modules whose records follow from the annotation file and the folder of images alone."""

METADATA = ("thing_classes", "thing_dataset_id_to_contiguous_id")
"""What loaders set in the metadata of a set while they read it."""


def shared_records(names: Sequence[str], filter_empty: bool) -> SharedRecords | None:
    """
    Records of registered data sets to train on, in memory once on each machine.

    Every process must call it. Where parsing fails, all processes raise the same error.

    Returns:
        None if some set cannot be kept in a file: then every process loads the records.
    """
    outcome: dict[str, Any] = {}
    if comm.get_local_rank() == 0:
        try:
            outcome["paths"] = [_stored(name) for name in names]
        except Exception as error:  # whatever it is, the other processes must not wait for it
            outcome["error"] = error
    outcomes = comm.all_gather(outcome)
    for other in outcomes:
        if "error" in other:
            raise other["error"]
    paths = outcomes[comm.get_rank() - comm.get_local_rank()]["paths"]
    if not paths or None in paths:
        return None
    stores = [RecordStore(path) for path in paths]
    for name, store in zip(names, stores):
        _complete_metadata(name, store)
    check_metadata_consistency("thing_classes", list(names))
    records = SharedRecords(stores, filter_empty)
    if not len(records):
        raise DatasetError(
            f"{', '.join(names)}: no image has an annotation to train on: are these test sets?"
        )
    return records


def parse_once(name: str) -> Sequence[Record]:
    """
    All records of one data set, parsed and kept for next time unless that was done before.

    Raises:
        DatasetError: as `load_records`.
    """
    identity = _identity(name)
    store = identity and _find(name, identity)
    if store:
        _complete_metadata(name, store)
        return SharedRecords([store], filter_empty=False, only_visible=False)
    with _without_garbage_collection():
        records = load_records(name)
        if identity and _can_be_kept(records):
            _keep(name, identity, records)
    return records


def _can_be_kept(records: Sequence[Record]) -> bool:
    """Whether the annotations can be columns; who counts them says what is wrong with them."""
    return all(
        isinstance(annotation.get("category_id"), int)
        for record in records
        for annotation in record.get("annotations", [{}])
    )


def _stored(name: str) -> Path | None:
    """The file with the records of a set, made if need be; None where that is not possible."""
    identity = _identity(name)
    if not identity:
        return None
    if _find(name, identity) is None:
        parse_once(name)
    store = _find(name, identity)
    return store and store.path


def loader_module(name: str) -> str:
    """The module of the function that loads a set; "" where there is none."""
    loader = DatasetCatalog[name] if name in DatasetCatalog.list() else None
    return getattr(loader, "__module__", "")


def _identity(name: str) -> dict[str, Any] | None:
    """What the records of a set depend on, or None if nobody knows, or it is not worth it."""
    metadata = MetadataCatalog.get(name)
    if loader_module(name) not in LOADERS or os.getenv(FOLDER_VARIABLE) == "off":
        return None
    path = metadata.get("json_file", "")
    if not os.path.isfile(path) or os.path.getsize(path) < WORTH_KEEPING:
        return None
    return {
        "version": VERSION,
        "detectron2": detectron2.__version__,
        "name": name,
        "image_root": str(metadata.get("image_root", "")),
        "sha256": file_digest(path),
    }


def _find(name: str, identity: dict[str, Any]) -> RecordStore | None:
    for path in _places(name, identity):
        try:
            store = RecordStore(path)
            # Some loaders look where the images are: a file made before they came would mislead.
            if store.header["identity"] == identity and os.path.isfile(store[0]["file_name"]):
                return store
        except Exception:  # absent, damaged or no records, in any way; it is only a cache
            continue
    return None


def _keep(name: str, identity: dict[str, Any], records: Sequence[Record]) -> None:
    metadata = MetadataCatalog.get(name).as_dict()
    kept = {key: _to_json(metadata[key]) for key in METADATA if key in metadata}
    summary = known_summary(MetadataCatalog.get(name).json_file)
    kept["summary"] = summary and dataclasses.asdict(summary)
    for path in _places(name, identity):
        try:
            record_store.write(path, records, identity, kept)
        except OSError as error:  # data sets often lie on read-only disks
            logger.info("Records of %s cannot be kept in %s: %s", name, path.parent, error)
            continue
        logger.info(
            "Records of %s are kept in %s (%.0f MiB): processes share them, and the next start "
            "need not parse them",
            *(name, path, path.stat().st_size / 2**20),
        )
        return
    logger.warning(
        "Records of %s cannot be kept anywhere, so every process parses and holds them: set %s "
        "to a folder that can be written",
        *(name, FOLDER_VARIABLE),
    )


def _places(name: str, identity: dict[str, Any]) -> Iterator[Path]:
    """Where the file of records may lie, the best place first."""
    json_file = Path(MetadataCatalog.get(name).json_file)
    name = name.replace(os.sep, "_")
    folder = os.getenv(FOLDER_VARIABLE)
    yield Path(folder or json_file.parent) / f"{json_file.stem}.{name}.records"
    private = _private_folder()
    if private is not None:
        # Sets of all folders meet here, so the content is part of the name.
        yield private / f"{json_file.stem}.{name}.{identity['sha256'][:16]}.records"


def _private_folder() -> Path | None:
    """A folder for temporary files in which nobody else can put anything."""
    path = Path(gettempdir()) / f"lt_detectron2_{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError:
        return None
    is_private = status.st_uid == os.getuid() and not status.st_mode & 0o077
    return path if stat.S_ISDIR(status.st_mode) and is_private else None


def _complete_metadata(name: str, store: RecordStore) -> None:
    """Set what the loader of the set would have set."""
    metadata, kept = MetadataCatalog.get(name), dict(store.header["metadata"])
    summary = kept.pop("summary")
    if summary is not None:  # sets of `register_dataset` would read the file for the rest
        remember_summary(metadata.json_file, AnnotationSummary.from_json(summary))
    for key, value in kept.items():
        if metadata.get(key) is None:
            setattr(metadata, key, _from_json(value))


def _to_json(value: Any) -> Any:
    # JSON knows texts as keys only, and category ids are numbers.
    return {"items": list(value.items())} if isinstance(value, dict) else list(value)


def _from_json(value: Any) -> Any:
    return dict(map(tuple, value["items"])) if isinstance(value, dict) else value


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of small objects without cycles are made: looking for some takes half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
