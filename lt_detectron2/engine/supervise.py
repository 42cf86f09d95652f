"""Waiting for the processes of a training: all end well, or none is left behind."""

from __future__ import annotations

import math
import os
import pickle
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType

import torch.multiprocessing as mp

from ..errors import UserError
from .stop import STATUSES, StopRequested, handling_signals

FAILURE_GRACE = 15.0
"""Seconds that the others have to notice that one failed: they may be writing a file."""
STOP_GRACE = 600.0
"""Seconds that the main process has for a checkpoint, once another stopped as asked."""
LOOK_EVERY = 2.0


def supervise(context: mp.ProcessContext) -> None:
    """
    Wait for processes that ``torch.multiprocessing`` started; when one fails, end the others.

    SIGTERM and Ctrl-C are passed on to all, which then stop by themselves.

    Raises:
        UserError: one ended with it, or was killed.
        torch.multiprocessing.ProcessRaisedException: one raised something else first.
        StopRequested: they stopped as asked.
    """
    processes = context.processes
    with _passing_on_signals(processes) as received:
        deadline = math.inf
        while running := [process for process in processes if process.exitcode is None]:
            connection.wait([process.sentinel for process in running], timeout=LOOK_EVERY)
            codes = [process.exitcode for process in processes]
            failed = any(code not in (None, 0, *STATUSES) for code in codes)
            failed |= any(map(os.path.exists, context.error_files))  # it may hang after that
            stops = [code - 128 for code in codes if code in STATUSES]
            if stops and not received:  # only it was asked to; the others would wait for it
                received.append(stops[0])
                for process in running:
                    process.terminate()
            grace = FAILURE_GRACE if codes[0] is not None or not received else STOP_GRACE
            if failed or stops:
                deadline = min(deadline, time.monotonic() + grace)
            if time.monotonic() > deadline:
                break
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
            process.join()
    _raise_what_happened(context, codes, received)


@contextmanager
def _passing_on_signals(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Inside, what asks this process to stop asks them; what came so far is in the list."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        is_impatient = received.count(signal.SIGINT) > 1
        for process in processes:
            # Not SIGINT: a terminal has sent that to all already, and twice means at once.
            process.kill() if is_impatient else process.terminate()

    with handling_signals(pass_on):
        yield received


def _raise_what_happened(
    context: mp.ProcessContext, codes: Sequence[int | None], received: Sequence[int]
) -> None:
    """
    Raise what the first process to fail died of, if one did; others die of its absence.

    Where one stopped as asked, others may fail because it is no longer there.
    """
    raised, killed, aborted = [], [], []
    for rank, (code, file) in enumerate(zip(codes, context.error_files)):
        if os.path.exists(file):
            raised.append((os.path.getmtime(file), rank))
        elif code is not None and code not in (0, *STATUSES) and not (received and code < 0):
            # Communication libraries abort a process that lost its peers.
            (aborted if code == -signal.SIGABRT else killed).append(rank)
    if killed or (aborted and not raised):
        rank = (killed or aborted)[0]
        raise UserError(_obituary(rank, len(codes), codes[rank]))
    stops = [code - 128 for code in codes if code in STATUSES]
    errors = [_error_of(context, rank) for _, rank in sorted(raised)]
    if stops:  # what they say of their own is no consequence, as a checkpoint without room
        errors = [error for error in errors if isinstance(error, UserError)]
    if errors:
        raise errors[0]
    if received or stops:
        raise StopRequested((*received, *stops)[0])


def _obituary(rank: int, num_processes: int, code: int) -> str:
    how = f"ended with status {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", which is what a machine out of memory does"
    return (
        f"process {rank} of {num_processes} {how}; the others were ended too: go on from the last "
        "checkpoint with --resume"
    )


def _error_of(context: mp.ProcessContext, rank: int) -> Exception:
    with open(context.error_files[rank], "rb") as file:
        traceback = pickle.load(file)  # written by our own process
    text = f"process {rank} of {len(context.processes)} raised:\n\n{traceback}"
    error = mp.ProcessRaisedException(text, rank, context.processes[rank].pid)
    return user_error_in(traceback) or error


def user_error_in(traceback: str) -> UserError | None:
    """The UserError that a process ended with, if it did: only its text comes back from there."""
    *_, last = ["", *re.split(rf"^{UserError.__module__}\.\w+: ", traceback, flags=re.MULTILINE)]
    was_last = last != traceback and "Traceback (most recent call last)" not in last
    return UserError(last.strip()) if was_last else None
