"""Run a function in two processes that form a group, as two GPUs of one training run would."""

import datetime
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD_SIZE = 2
TIMEOUT = 120.0
"""Seconds after which a pair that waits for each other is given up."""


def run_in_two_processes(function: Callable[..., Any], *args: Any) -> list[Any]:
    """
    Call ``function(rank, *args)`` in two gloo processes and return what each returned.

    Args:
        function: importable by name; returns what torch.save can write.

    Raises:
        TimeoutError: the processes have not ended in time, as when one misses a collective.
        torch.multiprocessing.ProcessRaisedException: one of them raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.spawn(_process, (folder, function, args), nprocs=WORLD_SIZE, join=False)
        deadline = time.monotonic() + TIMEOUT
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} still runs after {TIMEOUT:.0f} s")
        paths = [Path(folder, f"{rank}.pt") for rank in range(WORLD_SIZE)]
        return [torch.load(path, weights_only=True) for path in paths]


def _process(rank: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name need not resolve
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=datetime.timedelta(seconds=TIMEOUT / 2),
    )
    torch.save(function(rank, *args), Path(folder, f"{rank}.pt"))
    dist.barrier()
    # Both are done. Taking gloo's threads down can abort a process whose partner is gone already,
    # about once in a hundred times, so nothing is taken down.
    os._exit(0)
