"""Detections of one process while the model runs: a few in memory, the others in files."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import UserError
from .detections import Detections, Kept

_AT_ONCE = 1 << 16
"""Detections that are held in memory; with masks they are some 10 MB."""


class CollectedDetections:
    """
    Detections in the order in which they come; the memory for them does not grow with their number.

    Whenever enough have come, each of their columns is appended to a file of its own. These files
    have no names: whatever ends the process, nothing of them is left.

    Args:
        folder: on whose disk the files are; None keeps everything in memory.
        kept: what is set aside before detections come here.
    """

    def __init__(self, folder: str | None, kept: Kept):
        self._folder = folder
        self._kept = kept
        self._waiting: list[Detections] = []
        self._number = self._num_waiting = 0
        # A file for each column, and a column of no rows that tells its type.
        self._files: dict[str, tuple[IO[bytes], np.ndarray]] = {}

    def __len__(self) -> int:
        return self._number

    def append(self, detections: Detections) -> None:
        """
        Raises:
            UserError: the disk is full, or cannot be written.
            ValueError: some detections have masks and others do not.
        """
        self._kept += detections.kept
        self._waiting.append(detections)
        self._number += len(detections)
        self._num_waiting += len(detections)
        if self._folder is not None and self._num_waiting >= _AT_ONCE:
            self._write_waiting()

    def read(self) -> Detections:
        """
        All of them. Columns that are in files are mapped: the system loads what is looked at, and
        may drop it again. They outlive this object.

        Raises:
            UserError, ValueError: as `append`.
        """
        if not self._files:
            found = Detections.concatenate(self._waiting)
        else:
            self._write_waiting()
            found = Detections.from_columns(
                {name: _mapped(*column) for name, column in self._files.items()}
            )
        return replace(found, kept=self._kept)

    def _write_waiting(self) -> None:
        waiting = Detections.concatenate(self._waiting)
        self._waiting, self._num_waiting = [], 0
        try:
            for first in range(0, len(waiting), _AT_ONCE):
                self._write(waiting.take(slice(first, first + _AT_ONCE)))
        except OSError as error:
            raise UserError(
                f"expected room for detections in {self._folder} while the model runs, they cannot "
                f"be written ({error}): make room, or choose another OUTPUT_DIR"
            ) from error

    def _write(self, detections: Detections) -> None:
        columns = detections.columns()
        del columns["kept"]
        if not self._files:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            for name, column in columns.items():
                self._files[name] = tempfile.TemporaryFile(dir=self._folder), column[:0].copy()
        if columns.keys() != self._files.keys():
            raise ValueError(
                "expected masks for all images or for none, got them for some: evaluate one model "
                "at a time"
            )
        for name, column in columns.items():
            file, _ = self._files[name]
            file.write(column.tobytes())
            file.flush()


def _mapped(file: IO[bytes], empty: np.ndarray) -> np.ndarray:
    if not file.tell():  # nothing to map
        return empty
    # Copy on write, for arrays that cannot be written are another type to compiled kernels.
    flat = np.memmap(file, empty.dtype, mode="c")
    return np.asarray(flat).reshape(-1, *empty.shape[1:])
