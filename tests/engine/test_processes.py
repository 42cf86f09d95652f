"""Two processes that share a batch train what one process does with all of it."""

from pathlib import Path

import torch
from detectron2.utils import comm
from torch.testing import assert_close

from tests.engine.toy_jobs import launch_pair
from tests.engine.toy_training import config, train

STEPS = 5
BATCH = 4


def train_and_keep(folder, data):
    """What each process has in the end, in a file of its number and theirs."""
    whole = [
        *("MODEL.META_ARCHITECTURE", "SteadyToyDetector", "SOLVER.MAX_ITER", STEPS),
        *("SOLVER.IMS_PER_BATCH", BATCH, "LONG_TAIL.LOSS.NAME", "EqualizationLossV2"),
    ]
    processes = comm.get_world_size()
    trainer = train(config(folder / str(processes), data, *whole))
    torch.save(trainer._model.state_dict(), folder / f"{comm.get_rank()}_of_{processes}.pth")


def test_two_processes_train_what_one_does(tmp_path, monkeypatch):
    """After 5 steps of the trainer two processes are alike, and like one with the whole batch."""
    config(tmp_path, tmp_path)  # makes the data set
    launch_pair(monkeypatch, train_and_keep, tmp_path, tmp_path)
    train_and_keep(tmp_path, tmp_path)
    first, second, alone = (
        torch.load(Path(tmp_path, f"{name}.pth")) for name in ("0_of_2", "1_of_2", "0_of_1")
    )
    assert alone["classifier.weight"].dtype == torch.float64
    assert "loss.positive_gradient" in alone
    assert_close(first, second, rtol=0, atol=0)
    assert_close(first, alone, rtol=1e-12, atol=1e-14)
