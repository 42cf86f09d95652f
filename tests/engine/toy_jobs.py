"""Toy trainings in processes of their own, which start at once: they are forked by a server."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

from lt_detectron2.engine.launch import launch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.engine.toy_training"])
TIMEOUT = 60.0
"""Seconds within which a job has to end, however it ends."""

_start_processes = mp.start_processes


def start(function: Callable[..., Any], *args: Any) -> multiprocessing.Process:
    """A process that runs ``function(*args)``."""
    process = CONTEXT.Process(target=function, args=args)
    process.start()
    return process


def launch_pair(monkeypatch: Any, function: Callable[..., Any], *args: Any) -> float:
    """``launch`` of two processes, which may raise; the seconds it took otherwise."""
    return launch_forked(monkeypatch, function, *args, processes=2)


def launch_forked(
    monkeypatch: Any,
    function: Callable[..., Any],
    *args: Any,
    processes: int = 1,
    machine: tuple[int, int, str] = (1, 0, "auto"),
) -> float:
    """The same of any job; ``machine`` is their number, this one and the address of the first."""

    def start_forked(*args: Any, **kwargs: Any) -> Any:
        return _start_processes(*args, **{**kwargs, "start_method": "forkserver"})

    monkeypatch.setattr(mp, "start_processes", start_forked)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the host's name need not resolve
    begin = time.monotonic()
    launch(function, processes, *machine, args=args)
    return time.monotonic() - begin
