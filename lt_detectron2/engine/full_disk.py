"""A disk that is full ends a run with one sentence, in whichever of its processes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError
from .checkpoint import LAST_FILE, what_is_kept

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Inside, a full disk whose error names no file, as of writing to an open one, is of this."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            error.filename = file
        raise


@contextmanager
def explaining_full_disk(
    output_dir: str, *, trains: bool = True, resumes: bool = False
) -> Iterator[None]:
    """
    Inside, an OSError for want of space becomes a sentence: what was written, and what is kept.

    Args:
        output_dir: of the run.
        trains: it is no evaluation.
        resumes: checkpoints that are there already are its own.

    Raises:
        UserError: it happened. Other errors pass.
    """
    others = None if resumes else _newest(output_dir)
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        file = error.filename or f"a file, in {output_dir} or in the memory of /dev/shm,"
        failure = f"{file} could not be written ({os.strerror(error.errno)})"
        if not trains:
            remedy = ": make room, or choose another OUTPUT_DIR, and start again"
        elif _newest(output_dir) == others:
            remedy = ", before the first checkpoint: make room, or choose another OUTPUT_DIR"
        else:
            remedy = f", and {what_is_kept(output_dir)}: make room, and go on with --resume"
        raise UserError(failure + remedy) from error


def _newest(output_dir: str) -> tuple[int, int] | None:
    """What tells one checkpoint from another: the file that names the newest is made anew."""
    with contextlib.suppress(OSError):
        status = os.stat(os.path.join(output_dir, LAST_FILE))
        return status.st_ino, status.st_mtime_ns
    return None
