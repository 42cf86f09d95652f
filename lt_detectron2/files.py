"""Files that are there in full or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PART_SUFFIX = ".part"
"""Ends the name of a file that is being written, or that a process did not live to complete."""


@contextlib.contextmanager
def replacing(path: str | Path, mode: str = "w", *, durable: bool = False) -> Iterator[IO]:
    """
    Open a file that takes the place of ``path`` only when it is complete.

    Args:
        path: on a local disk.
        mode: of ``open``; text is UTF-8.
        durable: wait until the disk has it, so that not even a power failure leaves half of it.

    Raises:
        OSError: the folder cannot be written, or is full; ``path`` is as it was.
    """
    part = f"{path}.{os.getpid()}{PART_SUFFIX}"
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
        if durable:
            _sync_folder(os.path.dirname(os.path.abspath(path)))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def _sync_folder(folder: str) -> None:
    """Let the new name reach the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(handle)
    finally:
        os.close(handle)
