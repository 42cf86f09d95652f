"""
Start one process for each GPU, or several CPU processes, or join those that torchrun started.

Detectron2's ``launch`` insists on CUDA and does not know torchrun; otherwise this does the same.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import ParseResult, urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from ..errors import ConfigError, UserError
from .stop import StopRequested
from .supervise import supervise, user_error_in

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=30)


def launch(
    main: Callable[..., Any],
    num_processes_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
    timeout: timedelta = TIMEOUT,
) -> None:
    """
    Run ``main(*args)`` in every process of the job and wait for all of them.

    Under torchrun (its environment variables are there) this process is one of the job already,
    and the other arguments are ignored. With CUDA, a process is given the GPU of its local rank
    and talks over NCCL; without, processes talk over gloo.

    Args:
        main: a function that can be pickled.
        num_processes_per_machine: GPUs to use, or CPU processes where there is no GPU.
        num_machines, machine_rank: as in Detectron2.
        dist_url: ``tcp://host:port`` of the first machine, or "auto" for a free local port.
        timeout: of collectives, after which a process that waits for a dead one gives up.

    Raises:
        ConfigError: the port is in use, more GPUs than there are, "auto" with several machines.
        UserError: what a process that was started here ended with, or that it was killed.
        StopRequested: the job was asked to stop, and did.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        _join_torchrun(timeout)
        return _run(main, args)

    world_size = num_processes_per_machine * num_machines
    if torch.cuda.is_available() and num_processes_per_machine > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus {num_processes_per_machine}, but this machine has "
            f"{torch.cuda.device_count()}: ask for at most that many"
        )
    if world_size <= 1:
        return _run(main, args)
    url = _resolve_url(dist_url, num_machines, machine_rank)
    context = mp.start_processes(
        _worker,
        nprocs=num_processes_per_machine,
        args=(
            *(main, num_processes_per_machine, num_machines, machine_rank, url, args, timeout),
            mp.get_start_method(),
        ),
        start_method="spawn",
        join=False,
    )
    supervise(context)


def _join_torchrun(timeout: timedelta) -> None:
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    _select_device(local_rank)
    dist.init_process_group(_backend(), init_method="env://", timeout=timeout)
    _create_local_group(local_size)


def _worker(
    local_rank: int,
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    url: str,
    args: tuple,
    timeout: timedelta,
    start_method: str,
) -> None:
    # A process that was spawned would spawn the workers of its loaders as well: each would import
    # everything anew and be sent a copy of the data set.
    mp.set_start_method(start_method, force=True)
    _select_device(local_rank)
    dist.init_process_group(
        _backend(),
        init_method=url,
        world_size=num_processes * num_machines,
        rank=machine_rank * num_processes + local_rank,
        timeout=timeout,
    )
    _create_local_group(num_processes)
    try:
        main(*args)
    except StopRequested as stop:
        # The checkpoint is written. Nothing is taken down: that could wait for others.
        logging.shutdown()
        os._exit(stop.code)
    # Whoever leaves first takes connections away that others may still be using. After an error
    # nobody waits: the process ends, and its parent ends the others.
    comm.synchronize()
    dist.destroy_process_group()


def _run(main: Callable[..., Any], args: tuple) -> Any:
    try:
        return main(*args)
    except UserError as error:  # in a worker of a loader, with its traceback in the message
        raise user_error_in(str(error)) or error from error


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"


def _select_device(local_rank: int) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Processes that each use all cores are several times slower than one.
        torch.set_num_threads(1)


def _create_local_group(num_processes: int) -> None:
    """Tell Detectron2 which processes share this machine."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_processes)
    else:  # 0.6 keeps the group in a private variable, and only its own launch sets it
        for first in range(0, dist.get_world_size(), num_processes):
            ranks = list(range(first, first + num_processes))
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _resolve_url(url: str, num_machines: int, machine_rank: int) -> str:
    if url == "auto":
        if num_machines > 1:
            raise ConfigError(
                "--dist-url auto finds a port on one machine only: with --num-machines "
                f"{num_machines} give tcp://<address of machine 0>:<free port>"
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    parsed = urlparse(url)
    if parsed.scheme != "tcp":
        return url
    port = _port_of(parsed)
    if machine_rank == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((parsed.hostname, port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} of {parsed.hostname} cannot be used ({error.strerror}): "
                    "another training may be running, or an earlier one left processes behind; "
                    "end them, or pass --dist-url auto"
                ) from error
    return url


def _port_of(url: ParseResult) -> int:
    try:
        if url.hostname and url.port:
            return url.port
    except ValueError:  # no number, or too large a one
        pass
    raise ConfigError(
        f"--dist-url {url.geturl()!r} names no port of a machine: give "
        "tcp://<address of machine 0>:<free port>"
    )
