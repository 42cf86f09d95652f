"""
Records of a data set in a file that all processes of a machine map into their memory.

The pages of the file are in memory once, whoever reads them: ranks, their loaders' workers, and the
next training. Beside the pickled records lie the classes of all annotations as columns, so that
counting and sampling need not unpickle anything.

    pickled records | offsets (N+1,) | counts (N,) | classes, flags (A,) | header | end

Shapes: N records, A annotations.
"""

from __future__ import annotations

import io
import json
import logging
import operator
import os
import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import BoxMode
from torch import Tensor
from torch.utils.data import Dataset

from ..files import replacing
from .validate import is_visible, without_invisible

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_MAGIC = b"lt-recs1"
_END = struct.Struct("<q8s")
"""Size of the header, and the mark of a complete file."""

_COLUMNS = {
    "offsets": "<i8",
    "num_annotations": "<i8",
    "categories": "<i4",
    "crowds": "|b1",
    "masks": "|b1",
    "visible": "|b1",
}
_BOX_MODE = (BoxMode.__module__, BoxMode.__qualname__)
"""What a record may hold beside Python's own numbers, texts and containers."""


class RecordStore(Dataset):
    """
    Records by index, read from a file on access.

    Attributes:
        path: of the file.
        header: what `write` was given as identity and metadata.
        num_annotations: (N,) int64 of each record.
        categories: (A,) int32 classes of all annotations, record after record.
        crowds, masks, visible: (A,) bool, whether it is a crowd, has a segmentation, and a box with
            area inside its image.
    """

    def __init__(self, path: str | Path):
        """
        Raises:
            Exception: the file is absent, cut short, damaged or none of these; of many types.
        """
        self.path = Path(path)
        with open(self.path, "rb") as file:
            end = file.seek(-_END.size, os.SEEK_END)
            header_size, magic = _END.unpack(file.read(_END.size))
            if magic != _MAGIC or not 0 < header_size <= end:
                raise ValueError(f"{path} is not a complete file of records")
            file.seek(end - header_size)
            self.header = json.loads(file.read(header_size))
        content = np.memmap(self.path, mode="r", dtype=np.uint8)
        self._content = memoryview(content)
        columns, start = {}, self.header["num_bytes"]
        for name, dtype in _COLUMNS.items():
            stop = start + np.dtype(dtype).itemsize * self.header["lengths"][name]
            columns[name] = content[start:stop].view(dtype)
            start = stop
        self._offsets = columns["offsets"]
        self.num_annotations = columns["num_annotations"]
        self.categories = columns["categories"]
        self.crowds, self.masks = columns["crowds"], columns["masks"]
        self.visible = columns["visible"]

    def __len__(self) -> int:
        return len(self.num_annotations)

    def __getitem__(self, index: int) -> Record:
        start, stop = self._offsets[index], self._offsets[index + 1]
        record = _Unpickler(io.BytesIO(self._content[start:stop])).load()
        for annotation in record["annotations"]:
            if "bbox_mode" in annotation:
                annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
        return record

    def __reduce__(self) -> tuple:
        # A worker that is spawned maps the file too, instead of getting a copy.
        return RecordStore, (self.path,)


class SharedRecords(Dataset):
    """
    Records of one or more data sets, as one sequence.

    Args:
        stores: a file of records for each set.
        filter_empty: leave out images without an object to train on, as Detectron2 does.
        only_visible: leave out annotations without a box inside their image.
    """

    def __init__(
        self, stores: Sequence[RecordStore], filter_empty: bool, only_visible: bool = True
    ):
        self.stores = list(stores)
        self.only_visible = only_visible
        self._starts = np.cumsum([0, *(len(store) for store in stores)])
        num_records = int(self._starts[-1])
        self.rows = np.arange(num_records)
        if filter_empty:
            image, _, crowd = self._annotations
            self.rows = np.flatnonzero(np.bincount(image[~crowd], minlength=num_records))
            logger.info("%d of %d images have objects to train on", len(self.rows), num_records)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row = self.rows[index]
        store = int(np.searchsorted(self._starts, row, side="right")) - 1
        record = self.stores[store][row - self._starts[store]]
        return without_invisible(record) if self.only_visible else record

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def _annotations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of annotations (A,) the record before filtering, the class, and whether a crowd."""
        sizes = np.concatenate([store.num_annotations for store in self.stores])
        image = np.repeat(np.arange(len(sizes)), sizes)
        columns = image, self._column("categories"), self._column("crowds")
        return tuple(column[self._is_kept] for column in columns)

    @cached_property
    def _is_kept(self) -> np.ndarray | slice:
        """Which of the annotations in the files there are."""
        return self._column("visible") if self.only_visible else slice(None)

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(store, name) for store in self.stores])

    def _pairs(self, with_crowds: bool) -> tuple[np.ndarray, np.ndarray]:
        """Position and class of the annotations of all records that were not left out."""
        image, category, crowd = self._annotations
        position = np.full(int(self._starts[-1]), -1)
        position[self.rows] = np.arange(len(self.rows))
        kept = position[image] >= 0
        if not with_crowds:
            kept &= ~crowd
        return position[image[kept]], category[kept].astype(np.int64)

    def objects(self) -> tuple[Tensor, Tensor]:
        """(objects,) int64 image and class of each; without crowds, which nobody trains on."""
        image, category = self._pairs(with_crowds=False)
        return torch.from_numpy(image), torch.from_numpy(category)

    def without_masks(self) -> list[Record]:
        """Records with an object that has no segmentation."""
        masks = self._column("masks")[self._is_kept]
        image, _, crowd = self._annotations
        lacking = np.unique(image[~masks & ~crowd])
        return [self[i] for i in np.flatnonzero(np.isin(self.rows, lacking)).tolist()]

    def class_records(self) -> list[Record]:
        """Records that know the classes of their annotations, each once, and nothing else."""
        image, category = self._pairs(with_crowds=True)
        width = int(category.max(initial=0)) + 1
        image, category = np.divmod(np.unique(image * width + category), width)
        entries = [{"category_id": c} for c in range(width)]
        records: list[Record] = [{"annotations": []} for _ in range(len(self))]
        for i, c in zip(image.tolist(), category.tolist()):
            records[i]["annotations"].append(entries[c])
        return records


class _Unpickler(pickle.Unpickler):
    """Makes nothing but records, whoever wrote the file."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != _BOX_MODE:
            raise pickle.UnpicklingError(f"a record must not hold {module}.{name}")
        return operator.index  # a number; a file could set the attributes of class and members


def write(
    path: str | Path,
    records: Sequence[Record],
    identity: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """
    Write a file of records, whole or not at all.

    Args:
        path: of the file.
        records: with `annotations`, each with a `category_id`.
        identity: what the records are of; JSON.
        metadata: what somebody who reads the records must know beside them; JSON.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    with replacing(path, "wb") as file:
        sizes = [file.write(pickle.dumps(record, protocol=5)) for record in records]
        annotations = [a for record in records for a in record["annotations"]]
        columns = {
            "offsets": np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
            "num_annotations": [len(record["annotations"]) for record in records],
            "categories": [a["category_id"] for a in annotations],
            "crowds": [bool(a.get("iscrowd", 0)) for a in annotations],
            "masks": [bool(a.get("segmentation")) for a in annotations],
            "visible": [is_visible(a, record) for record in records for a in record["annotations"]],
        }
        file.write(bytes(-file.tell() % 8))  # columns begin where numbers of 8 bytes may
        num_bytes = file.tell()
        for name, dtype in _COLUMNS.items():
            file.write(np.asarray(columns[name], dtype=dtype).tobytes())
        header = {
            "identity": dict(identity),
            "metadata": dict(metadata),
            "num_bytes": num_bytes,
            "lengths": {name: len(column) for name, column in columns.items()},
        }
        file.write(content := json.dumps(header).encode())
        file.write(_END.pack(len(content), _MAGIC))
