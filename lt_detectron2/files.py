"""Files that are there in full or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import os
import uuid
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
        path: on a disk. Of several processes that write it at once, the last one to finish wins.
        mode: "w" for text, which is UTF-8, or "wb".
        durable: wait until the disk has it, so that not even a power failure leaves half of it.

    Raises:
        OSError: the folder cannot be written, or is full; ``path`` is as it was.
    """
    # Processes of other machines, and containers, may have the same number.
    part = f"{path}.{os.getpid()}-{uuid.uuid4().hex}{PART_SUFFIX}"
    try:
        with open(part, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
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
