"""What each process of a training has of its own, so that a checkpoint holds all of it."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ..random_state import random_state, set_random_state

logger = logging.getLogger(__name__)

ProcessState = dict[str, Any]


def gather_process_states(model: nn.Module) -> list[ProcessState]:
    """
    The states of all processes in the main one, [] in the others. A collective.

    A state holds the random number generators, and the buffers that are not those of the main
    process, as running statistics of batch normalisation are.
    """
    return comm.gather({"random": random_state(), "buffers": _own_buffers(model)})


def restore_process_state(model: nn.Module, states: list[ProcessState]) -> None:
    """Let this process go on from its state; with another number of processes, not quite."""
    if len(states) != comm.get_world_size():
        logger.warning(
            "The checkpoint is of a training in %d processes, this one has %d: random numbers "
            "start afresh, and all processes have the running statistics of the first",
            len(states),
            comm.get_world_size(),
        )
        return
    state = states[comm.get_rank()]
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
    set_random_state(state["random"])


def _own_buffers(model: nn.Module) -> dict[str, Tensor]:
    if comm.get_world_size() == 1:
        return {}
    saved = model.state_dict()
    buffers = {name: saved[name].cpu() for name, _ in model.named_buffers() if name in saved}
    digests = {name: _digest(value) for name, value in buffers.items()}
    of_main = comm.all_gather(digests)[0]
    return {name: value for name, value in buffers.items() if digests[name] != of_main[name]}


def _digest(value: Tensor) -> bytes:
    return hashlib.sha256(value.contiguous().view(-1).view(torch.uint8).numpy()).digest()
