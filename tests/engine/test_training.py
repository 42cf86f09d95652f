"""Real trainings of the smallest set: they learn, resume, evaluate again, in one process or two."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lt_detectron2.engine.gradient_record import GradientRecord

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE = "configs/SynthLT/{}_smoke.yaml"
TWO_STEPS = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4", "MODEL.MASK_ON", "False"]
NO_TEST = ["DATASETS.TEST", "()"]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A root for data sets of its own: the first training generates SynthLT there."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def train(datasets, tmp_path):
    def run(method, folder, *overrides, flags=(), launcher=(), expect=0):
        command = [sys.executable, *launcher, "train_net.py", *flags]
        command += ["--config-file", SMOKE.format(method)]
        command += ["LONG_TAIL.REPORT", "False"]  # tested by itself
        command += ["OUTPUT_DIR", str(tmp_path / folder), *map(str, overrides)]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
        return Run(tmp_path / folder, done.stdout + done.stderr)

    return run


class Run:
    def __init__(self, folder, output):
        self.folder, self.output = folder, output

    def results(self):
        return json.loads((self.folder / "inference" / "results.json").read_text())["results"]

    def losses(self):
        lines = (self.folder / "metrics.json").read_text().splitlines()
        return [e["total_loss"] for e in map(json.loads, lines) if "total_loss" in e]

    def checkpoint(self, name="model_final.pth"):
        return torch.load(self.folder / name, weights_only=True)


def assert_equal_checkpoints(actual, expected):
    assert list(actual["model"]) == list(expected["model"])
    for name, value in expected["model"].items():
        assert torch.equal(actual["model"][name], value), name


def test_learns_and_reports(train):
    run = train("eqlv2", "run", "MODEL.MASK_ON", "False")
    losses = run.losses()
    assert losses[-1] < losses[0] * 2 / 3
    results = run.results()["bbox"]
    assert results["APf"] > 10
    assert results["AP"] > 10
    table = (run.folder / "inference" / "per_category.csv").read_text()
    assert len(table.splitlines()) == 1 + 16 and "-1" not in table
    checkpoint = run.checkpoint()
    statistics = checkpoint["class_statistics"]
    assert len(statistics["class_names"]) == 16 and sum(statistics["instance_count"]) > 1000
    (events,) = run.folder.glob("events.out.tfevents.*")
    for scalar in ("loss_state/gradient_ratio_rare", "bbox/APc", "bbox/APf", "bbox/AP_2"):
        assert scalar in (run.folder / "metrics.json").read_text()
        assert scalar.encode() in events.read_bytes()
    assert "copypaste: Task: bbox" in run.output

    # The same numbers from the checkpoint alone: without the training set or its statistics.
    again = train(
        "eqlv2",
        "again",
        *("MODEL.MASK_ON", "False", "MODEL.WEIGHTS", run.folder / "model_final.pth"),
        *("DATASETS.TRAIN", "()", "LONG_TAIL.REPORT", "True"),
        flags=["--eval-only"],
    )
    report = (again.folder / "report.md").read_text()
    assert f"{results['APf']:.1f}" in report and "--eval-only" in report
    assert "Could not be made" not in report and "Not shown" not in report
    assert (again.folder / "report.html").is_file()
    assert again.results() == run.results()
    assert (again.folder / "inference" / "per_category.csv").read_text() == table


@pytest.mark.parametrize("method", ["eqlv2", "seesaw"])
def test_resume_restores_every_state(train, method):
    overrides = [*TWO_STEPS, *NO_TEST]
    run = train(method, "run", *overrides)
    before = run.checkpoint()
    resumed = train(method, "run", *overrides, flags=["--resume"])
    assert "Starting training from iteration 2" in resumed.output
    assert_equal_checkpoints(resumed.checkpoint(), before)
    momentum = resumed.checkpoint()["trainer"]["_trainer"]["optimizer"]["state"]
    expected = before["trainer"]["_trainer"]["optimizer"]["state"]
    assert momentum.keys() == expected.keys() and len(momentum) > 20
    for key, state in expected.items():
        assert torch.equal(momentum[key]["momentum_buffer"], state["momentum_buffer"])
    run = train(method, "run", *overrides, "SOLVER.MAX_ITER", "4", flags=["--resume"])
    after = run.checkpoint()["model"]
    state = [name for name in after if "classification_loss" in name]
    assert state and all((after[n] >= before["model"][n]).all() for n in state)
    assert any((after[n] > before["model"][n]).any() for n in state)


def test_evaluation_refuses_another_classifier(train):
    run = train("eqlv2", "run", *TWO_STEPS, *NO_TEST)
    weights = ["MODEL.WEIGHTS", run.folder / "model_final.pth", "MODEL.MASK_ON", "False"]
    refused = train("seesaw", "other", *weights, flags=["--eval-only"], expect=1)
    assert "the checkpoint does not fit the model" in refused.output
    assert "cls_score.weight is (17, 128) in the checkpoint and (18, 128)" in refused.output
    assert "Traceback" not in refused.output

    started = train("seesaw", "start", *TWO_STEPS, *NO_TEST, *weights[:2])
    assert "These start afresh" in started.output
    assert "cls_score.weight is (17, 128) in the checkpoint and (18, 128)" in started.output


TWO_PROCESSES = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.REFERENCE_WORLD_SIZE", "0"),
    *("MODEL.MASK_ON", "False", "MODEL.DEVICE", "cpu"),
]


@pytest.mark.parametrize("start", ["spawn", "torchrun"])
def test_two_processes(train, start):
    """Two processes train and evaluate together, started by train_net.py or by torchrun."""
    if start == "spawn":
        flags, launcher = ["--num-gpus", "2", "--dist-url", "auto"], ()
    else:
        flags, launcher = (), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert_trained_together(train("eqlv2", "run", *TWO_PROCESSES, flags=flags, launcher=launcher))


def test_two_machines(train):
    """Two machines, here by loopback, train and evaluate together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    job = ["--num-gpus", "1", "--num-machines", "2", "--dist-url", url, "--machine-rank"]

    def start(rank):
        return train("eqlv2", "run", *TWO_PROCESSES, flags=[*job, str(rank)])

    with ThreadPoolExecutor(max_workers=2) as pool:
        first, _ = pool.map(start, range(2))
    assert_trained_together(first)


def assert_trained_together(run):
    assert "World size: 2" in run.output
    assert set(run.results()) == {"bbox"}
    state = run.checkpoint()["model"]
    assert float(state["roi_heads.box_predictor.classification_loss.negative_gradient"].sum()) > 0


def test_records_gradients_of_every_stage(train):
    heads = ["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads", "LONG_TAIL.GRADIENT_PERIOD", 2]
    run = train("seesaw", "run", *TWO_STEPS, *NO_TEST, *heads, "SOLVER.MAX_ITER", 3)
    record = GradientRecord.load(run.folder / "gradients.npz")
    assert record.iterations.tolist() == [2, 3] and record.sums.shape == (2, 3, 3, 16)
    assert (record.sums[1] >= record.sums[0]).all() and record.sums[0].sum(axis=(1, 2)).all()
    assert "gradients/ratio_frequent" in (run.folder / "metrics.json").read_text()
    (events,) = run.folder.glob("events.out.tfevents.*")
    assert b"gradients/negative_share" in events.read_bytes()
    checkpoint = run.checkpoint()
    total = checkpoint["trainer"]["hooks"]["GradientRecorder"]["total"]
    assert total.tolist() == record.sums[-1].tolist()
    assert not any("gradient" in name for name in checkpoint["model"])
