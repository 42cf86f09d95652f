"""A disk that is full ends a run with one sentence, in whichever of its processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError
from .checkpoint import what_is_kept

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Inside, an OSError that names no file, as those of writing to an open one, is of this."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = file
        raise


@contextmanager
def explaining_full_disk(output_dir: str) -> Iterator[None]:
    """
    Inside, an OSError for want of space becomes a sentence: what was written, and what is kept.

    Raises:
        UserError: it happened. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        file = error.filename or f"a file, perhaps in {output_dir},"
        raise UserError(
            f"{file} could not be written ({os.strerror(error.errno)}), and "
            f"{what_is_kept(output_dir)}: make room, and go on with --resume, or choose another "
            "OUTPUT_DIR"
        ) from error
