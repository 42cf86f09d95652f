"""The state of all generators survives a checkpoint, and an evaluation."""

import random

import numpy as np
import torch

from lt_detectron2.engine import trainer
from lt_detectron2.engine.setup import load_config
from lt_detectron2.random_state import (
    keeping_random_state,
    random_state,
    set_random_state,
)


def draws():
    # An odd number of normal draws: NumPy and Python keep the other one of a pair.
    return [
        *torch.rand(3).tolist(),
        *np.random.randn(3).tolist(),
        np.random.randint(1000),
        random.gauss(0, 1),
        random.random(),
    ]


def test_draws_go_on_after_a_checkpoint(tmp_path):
    draws()
    torch.save(random_state(), tmp_path / "state.pth")
    expected = draws()
    draws()
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert draws() == expected


def test_what_happens_inside_is_undone():
    state = random_state()
    expected = draws()
    set_random_state(state)
    try:
        with keeping_random_state():
            draws()
            raise RuntimeError
    except RuntimeError:
        pass
    assert draws() == expected


def test_an_evaluation_draws_nothing_from_a_training(monkeypatch):
    monkeypatch.setattr(trainer, "prepare_calibration", lambda cfg, model: draws())
    monkeypatch.setattr(trainer, "inference_on_dataset", lambda *args: draws() and {})
    monkeypatch.setattr(trainer.LongTailTrainer, "build_test_loader", lambda cfg, name: draws())
    monkeypatch.setattr(trainer.LongTailTrainer, "build_evaluator", lambda cfg, name: draws())
    cfg = load_config("", ["DATASETS.TEST", "('lvis_v1_val',)"])
    state = random_state()
    expected = draws()
    set_random_state(state)
    trainer.LongTailTrainer.test(cfg, torch.nn.Identity())
    assert draws() == expected
