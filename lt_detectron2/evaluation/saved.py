"""Saved detections in little memory: columns of `detections.npz`, mapped and not loaded."""

import struct
import zipfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .detections import Detections

_AT_ONCE = 1 << 16
_COLUMNS = ("image_ids", "category_ids", "scores", "boxes")
_LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a member of a zip archive; its last fields are the sizes of its name and extra field."""


class SavedDetections:
    """
    What an evaluation has saved, without masks, to be looked at image by image.

    Args:
        path: the `detections.npz` of an evaluator, which sorts by image and does not compress.

    Raises:
        OSError, ValueError, KeyError, zipfile.BadZipFile: there is no such file, or it is another.
    """

    def __init__(self, path: str | Path):
        self._columns = _mapped(path)

    def parts(self, at_once: int = _AT_ONCE) -> Iterator[Detections]:
        """All of them in order, those of an image together, some `at_once` at a time."""
        image_ids, start = self._columns["image_ids"], 0
        while start < len(image_ids):
            stop = min(start + at_once, len(image_ids))
            stop = bisect_right(image_ids, image_ids[stop - 1], lo=stop)
            yield self._loaded(start, stop)
            start = stop

    def of_images(self, ids: Iterable[int]) -> Detections:
        """Those of some images."""
        column = self._columns["image_ids"]
        # `np.searchsorted` would copy the column, which is not aligned in the file.
        bounds = [(bisect_left(column, id), bisect_right(column, id)) for id in ids]
        return Detections.concatenate([self._loaded(*bound) for bound in bounds])

    def _loaded(self, start: int, stop: int) -> Detections:
        return Detections(*(np.array(self._columns[name][start:stop]) for name in _COLUMNS))


def _mapped(path: str | Path) -> dict[str, np.ndarray]:
    columns = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for name in _COLUMNS:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{path} is compressed, and cannot be mapped")
            file.seek(member.header_offset)
            file.seek(sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))), 1)
            version = np.lib.format.read_magic(file)
            read = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
            shape, _, dtype = getattr(np.lib.format, read)(file)
            columns[name] = np.memmap(path, dtype, "r", offset=file.tell(), shape=shape)
    return columns
