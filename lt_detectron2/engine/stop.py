"""Ending a training that is asked to end, by a scheduler's SIGTERM or by Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.utils import comm

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(SystemExit):
    """
    A training ended as it was asked to, and can be resumed.

    The exit status is 128 + the signal, as shells have it: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)


STATUSES = tuple(StopRequested(number).code for number in SIGNALS)


@contextmanager
def handling_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, requests to stop go to this handler. In the main thread only, as Python has it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


class StopRequest:
    """
    Notes that this process, or another one of the job, is asked to end.

    Attributes:
        signal: that asked for it, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._num_interrupts = 0
        self._ends_at_once = False
        self._group = None
        if comm.get_world_size() > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")  # no GPU has to wait for the answer

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals are noted; a second Ctrl-C ends the process at once."""
        with handling_signals(self._note):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """
        Inside, a request does not wait for :meth:`agreed`, but raises StopRequested.

        For what is long and changes nothing: an evaluation.
        """
        self._ends_at_once = True
        try:
            if self.signal:
                raise StopRequested(self.signal)
            yield
        finally:
            self._ends_at_once = False

    def agreed(self) -> int:
        """The signal that asked any process of the job to stop, or 0. A collective."""
        if comm.get_world_size() > 1:
            seen = torch.tensor(self.signal)
            dist.all_reduce(seen, dist.ReduceOp.MAX, group=self._group)
            self.signal = int(seen)
        return self.signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._num_interrupts += number == signal.SIGINT
        if self._num_interrupts > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal = number
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            name = signal.Signals(number).name
            logger.warning("%s: saving a checkpoint after this step, then ending%s", name, again)
        if self._ends_at_once:
            self._ends_at_once = False  # let what follows be
            raise StopRequested(self.signal)
