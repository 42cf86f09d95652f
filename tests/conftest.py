"""What every test shares: one thread per process, seeded random numbers, no display."""

import os

# Before torch and matplotlib are imported. Tests run many tiny operations, for which threads cost
# more than they bring, and start processes of their own; a test that trains may ask for more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import logging
import random

import numpy as np
import pytest
import torch

# Programs that tests call set up handlers on a standard output that pytest closes after the test.
logging.raiseExceptions = False


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def logs_reach_the_test() -> None:
    """Programs that a test calls keep their logs from pytest's handler: undo that for the next."""
    for name in ("detectron2", "fvcore", "lt_detectron2"):
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.NOTSET)
