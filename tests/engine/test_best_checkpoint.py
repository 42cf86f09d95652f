"""The best checkpoint: of the best evaluation, over resumptions, and never what is resumed from."""

import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, TrainerBase

from lt_detectron2.engine.best_checkpoint import BestCheckpoint
from lt_detectron2.errors import CheckpointError


class Evaluation(HookBase):
    """Puts the next value where an evaluation is due, as EvalHook does."""

    def __init__(self, values):
        self.values = iter(values)

    def after_step(self):
        if (self.trainer.iter + 1) % 2 == 0 and self.trainer.iter + 1 != self.trainer.max_iter:
            self.put()

    def after_train(self):
        self.put()

    def put(self):
        self.trainer.storage.put_scalar("bbox/APr", next(self.values), smoothing_hint=False)


@pytest.fixture
def train(tmp_path):
    def run(values, max_iter=6, start=0, metric="APr"):
        model = torch.nn.Linear(1, 1, bias=False)
        checkpointer = DetectionCheckpointer(model, str(tmp_path))
        checkpointer.tag_last_checkpoint("model_0000001.pth")
        trainer = TrainerBase()
        trainer.start_iter = start

        def step():
            model.weight.data.fill_(trainer.iter + 1)

        trainer.run_step = step
        trainer.register_hooks([Evaluation(values), BestCheckpoint(2, checkpointer, metric)])
        trainer.train(start, max_iter)
        assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
        record = json.loads((tmp_path / "model_best.json").read_text())
        best = torch.load(tmp_path / "model_best.pth", weights_only=True)
        return int(best["model"]["weight"]), record

    return run


def test_best_of_all_evaluations(train):
    step, record = train([3.0, 8.0, 5.0])
    assert step == 4
    assert record == {"metric": "bbox/APr", "value": 8.0, "iteration": 3}


def test_last_may_be_the_best(train):
    step, record = train([3.0, 8.0, 9.0], metric="bbox/APr")
    assert (step, record["value"]) == (6, 9.0)


def test_resumed_training_remembers(train):
    train([3.0, 8.0], max_iter=4)
    step, record = train([5.0, 7.0], max_iter=8, start=4)
    assert (step, record["value"]) == (4, 8.0)
    step, record = train([8.5], max_iter=10, start=8)
    assert (step, record["value"]) == (10, 8.5)


def test_full_disk(train, monkeypatch, caplog):
    """What cannot be written is reported; the record stays that of the file there is."""
    save, values = DetectionCheckpointer.save, iter([8.0, 9.0, 8.5])

    def save_but_once(self, name, iteration):
        if next(values) == 9.0:
            raise CheckpointError("no space left")
        save(self, name, iteration=iteration)

    monkeypatch.setattr(DetectionCheckpointer, "save", save_but_once)
    step, record = train([8.0, 9.0, 8.5])
    assert (step, record["value"]) == (6, 8.5)
    assert "no space left\nTraining goes on" in caplog.text


def test_new_training_begins_anew(train, tmp_path):
    train([30.0, 80.0, 5.0])
    step, record = train([1.0, 2.0, 0.5])
    assert (step, record["value"]) == (4, 2.0)
    # A record whose checkpoint is gone says nothing.
    (tmp_path / "model_best.pth").unlink()
    step, record = train([1.0], max_iter=8, start=6)
    assert (step, record["value"]) == (8, 1.0)


def test_new_training_forgets_before_its_first_evaluation(train, tmp_path):
    """Stopped before that and resumed, it knows nothing of the folder's earlier training."""
    train([30.0, 80.0, 5.0])
    stopped = BestCheckpoint(2, DetectionCheckpointer(torch.nn.Identity(), str(tmp_path)), "APr")
    stopped.trainer = SimpleNamespace(start_iter=0)
    stopped.before_train()
    step, record = train([1.0], max_iter=8, start=6)
    assert (step, record["value"]) == (8, 1.0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metric": "bbox/APr", "value": null}'])
def test_damaged_record_is_passed_over(train, tmp_path, caplog, content):
    train([3.0, 8.0], max_iter=4)
    (tmp_path / "model_best.json").write_text(content)
    step, record = train([5.0], max_iter=8, start=6)
    assert (step, record["value"]) == (8, 5.0)
    assert "model_best.json cannot be read" in caplog.text
