"""The hash of a file's content, by which caches know whether they are still of it."""

from __future__ import annotations

import hashlib
import os

LARGE = 32 << 20
"""Bytes from which on hashing takes a while, so that it is done once."""

_known: dict[tuple[str, int, int, int], str] = {}
"""Of large files, by path, time of change, size and inode."""


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of the content, hexadecimal; "" if there is no such file."""
    path = os.fspath(path)
    if not path or not os.path.isfile(path):
        return ""
    status = os.stat(path)
    key = (path, status.st_mtime_ns, status.st_size, status.st_ino)
    if key in _known:
        return _known[key]
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if status.st_size >= LARGE:
        _known[key] = digest.hexdigest()
    return digest.hexdigest()
