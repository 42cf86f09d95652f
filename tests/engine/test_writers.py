"""Writers: chosen by the config, every number once, nothing lost between two writes."""

import json
import sys
import types

import pytest
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter

from lt_detectron2.engine.hooks import KEPT_VALUES
from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.engine.writers import (
    CSVWriter,
    FlushedTensorboardWriter,
    WandbWriter,
    WriteAfterEvaluation,
    build_writers,
    check_writers,
)
from lt_detectron2.errors import ConfigError
from tests.engine import toy_training


def config(folder, *writers):
    return load_config("", ["OUTPUT_DIR", str(folder), "LONG_TAIL.WRITERS", str(list(writers))])


def test_default_is_detectron2s(tmp_path):
    cfg = load_config("", ["OUTPUT_DIR", str(tmp_path)])
    writers = build_writers(cfg, 10)
    kinds = [CommonMetricPrinter, JSONWriter, FlushedTensorboardWriter]
    assert [type(writer) for writer in writers] == kinds
    for writer in writers:
        writer.close()


def test_unknown_writer():
    with pytest.raises(ConfigError, match="'tensorbord', expected some of: terminal, json"):
        check_writers(["terminal", "tensorbord"])


def test_absent_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="'wandb', whose package is not installed: pip install"):
        check_writers(["json", "wandb"])


class OneNumber(HookBase):
    """Puts a loss in each step and a metric at every third."""

    def after_step(self):
        iteration = self.trainer.iter
        self.trainer.storage.put_scalar("loss", 10.0 - iteration)
        if (iteration + 1) % 3 == 0:
            self.trainer.storage.put_scalar("bbox/APr", iteration / 2, smoothing_hint=False)


def run(writers, max_iter=12, start=0):
    trainer = TrainerBase()
    trainer.run_step = lambda: None
    stock = hooks.PeriodicWriter(writers, period=10)
    trainer.register_hooks([OneNumber(), WriteAfterEvaluation(stock, [3, 0])])
    trainer.train(start, max_iter)


def test_old_values_are_forgotten(tmp_path):
    cfg = toy_training.config(tmp_path, tmp_path, "SOLVER.MAX_ITER", "3", "LONG_TAIL.WRITERS", "[]")
    trainer = LongTailTrainer(cfg)
    trainer.train()
    storage = trainer.storage
    assert len(storage.history("total_loss").values()) == 3
    for step in range(1500):
        storage.put_scalar("total_loss", float(step))
    assert len(storage.history("total_loss").values()) == KEPT_VALUES
    assert storage.history("total_loss").latest() == 1499


def test_every_evaluation_reaches_every_writer(tmp_path):
    """Detectron2's hook alone would write the one of iteration 8 and that of iteration 11 only."""
    run([CSVWriter(tmp_path / "metrics.csv"), JSONWriter(str(tmp_path / "metrics.json"))])
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "iteration,name,value"
    values = {tuple(line.split(",")[:2]): float(line.split(",")[2]) for line in lines[1:]}
    evaluations = {(str(i), "bbox/APr"): i / 2 for i in (2, 5, 8, 11)}
    assert evaluations.items() <= values.items()
    assert sorted(int(i) for i, name in values if name == "loss") == [2, 5, 8, 9, 11]
    assert len(values) == len(lines) - 1  # nothing twice
    entries = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    found = {e["iteration"]: e["bbox/APr"] for e in entries if "bbox/APr" in e}
    assert found == {2: 1.0, 5: 2.5, 8: 4.0, 11: 5.5}


def test_csv_is_continued(tmp_path):
    run([CSVWriter(tmp_path / "metrics.csv")], max_iter=6)
    run([CSVWriter(tmp_path / "metrics.csv")], max_iter=12, start=6)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines.count("iteration,name,value") == 1
    assert [int(line.split(",")[0]) for line in lines if "APr" in line] == [2, 5, 8, 11]


@pytest.fixture
def wandb(monkeypatch):
    """A package of that name which records what it is told."""
    module = types.ModuleType("wandb")
    module.__spec__ = object()
    module.runs = []

    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.finished = options, [], False
            self.id = options["id"] or f"run{len(module.runs)}"
            module.runs.append(self)

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self):
            self.finished = True

    module.init = Run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb(tmp_path, wandb):
    cfg = config(tmp_path, "wandb")
    for _ in range(2):  # the second as after --resume
        (writer,) = build_writers(cfg, 10)
        assert isinstance(writer, WandbWriter)
        with EventStorage() as storage:
            storage.put_scalar("bbox/APr", 4.0, smoothing_hint=False)
            writer.write()
            writer.write()
        writer.close()
    first, second = wandb.runs
    assert first.logged == [(0, {"bbox/APr": 4.0})] and first.finished
    assert first.options["config"]["LONG_TAIL"]["WRITERS"] == ["wandb"]
    assert (first.options["id"], second.options["id"]) == (None, "run0")
