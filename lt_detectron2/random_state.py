"""The random number generators of a process: their state, and numbers of a sample's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """States of this process's generators, as tensors and numbers."""
    version, python_numbers, gauss = random.getstate()
    name, numpy_numbers, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, torch.tensor(python_numbers), gauss],
        "numpy": [name, torch.from_numpy(numpy_numbers.astype(np.int64)), position]
        + [has_gauss, cached],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    version, python_numbers, gauss = state["python"]
    random.setstate((version, tuple(python_numbers.tolist()), gauss))
    name, numpy_numbers, *rest = state["numpy"]
    np.random.set_state((name, numpy_numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def keeping_random_state() -> Iterator[None]:
    """Undo what happens inside to the generators."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextmanager
def seeded_by(*seeds: int) -> Iterator[None]:
    """
    Draw inside from generators seeded with these numbers, >= 0, and outside as if nothing was.

    For what runs on the CPU: generators of GPUs are left alone.
    """
    words = np.random.SeedSequence(seeds).generate_state(4)
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1:3])
        torch.default_generator.manual_seed(int(words[3]))
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
