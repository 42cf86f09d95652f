"""A training that was ended, in whatever way, goes on to the last bit as if it had not been."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from lt_detectron2.data.build import sampler_classes
from lt_detectron2.engine import validation_loss
from lt_detectron2.engine.checkpoint import HISTORY_FILE, LAST_FILE
from lt_detectron2.engine.stop import StopRequested
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.modeling.components import ranking_losses
from tests.engine.toy_jobs import TIMEOUT, launch_pair, start
from tests.engine.toy_training import DATASET, Interruption, config, train
from tests.losses.factory import build, loss_classes

WITH_RANKING = [f"SoftmaxCrossEntropyLoss+{name}" for name in ranking_losses()]
LOSSES = WITH_RANKING + [loss_class.__name__ for loss_class in loss_classes()]
STATEFUL = WITH_RANKING + [c.__name__ for c in loss_classes() if build(c).state_dict()]
SAMPLERS = [*sorted(sampler_classes()), "TrainingSampler", "RepeatFactorTrainingSampler"]
SHORT = list(zip([*STATEFUL, "FederatedLoss"], itertools.cycle(SAMPLERS)))
"""Every loss that has a state, and one that draws; every sampler."""
SHORT_PAIRS = SHORT[: len(WITH_RANKING) + 4]
LONG = list(itertools.product(LOSSES, SAMPLERS))


def overrides(loss, sampler):
    # A batch of one episode; a schedule that changes the loss between the two halves.
    episode = "LONG_TAIL.SAMPLER.EpisodicSampler"
    loss, _, ranking = loss.partition("+")
    return [
        *("LONG_TAIL.LOSS.NAME", loss, "LONG_TAIL.RANKING.NAME", ranking),
        *("DATALOADER.SAMPLER_TRAIN", sampler),
        *(f"{episode}.CLASSES_PER_EPISODE", "2", "LONG_TAIL.LOSS.LDAMLoss.REWEIGHT_FROM_STEP", 15),
    ]


class Killed(BaseException):
    """Ends a training on the spot, as far as Python allows."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy_data")
    config(folder, folder)  # makes the data set
    return folder


def contents(folder, name="model_final.pth"):
    return torch.load(Path(folder, name), weights_only=True)


def assert_same(actual, expected, where="checkpoint"):
    """Equal to the last bit, whatever it consists of."""
    assert type(actual) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected), where
    elif isinstance(expected, dict):
        assert list(actual) == list(expected), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for index, item in enumerate(expected):
            assert_same(actual[index], item, f"{where}[{index}]")
    else:
        assert actual == expected, where


def train_whole_and_in_parts(folder, data, *more):
    """20 steps; and 13, of which the last 3 are lost, and 10 from the checkpoint."""
    cfg = config(folder / "whole", data, *more)
    train(cfg)
    cfg = config(folder / "parts", data, *more)
    try:
        train(cfg, interruption=Interruption(12, Killed()))
        raise AssertionError("not interrupted")
    except Killed:
        pass
    trainer = train(cfg, resume=True)
    assert trainer.start_iter == 10


@pytest.mark.parametrize("loss, sampler", SHORT)
def test_one_process(tmp_path, data, loss, sampler):
    """20 steps = 10 + kill + resume + 10: weights, optimiser, loss, sampler, random numbers."""
    train_whole_and_in_parts(tmp_path, data, *overrides(loss, sampler))
    assert_same(contents(tmp_path / "parts"), contents(tmp_path / "whole"))


@pytest.mark.reliability
@pytest.mark.parametrize("loss, sampler", [case for case in LONG if case not in SHORT])
def test_one_process_all(tmp_path, data, loss, sampler):
    """20 steps = 10 + kill + resume + 10, of every loss with every sampler."""
    test_one_process(tmp_path, data, loss, sampler)


def test_comparison_sees_all_of_the_state(tmp_path, data):
    """What the tests compare holds state of each kind, and differs between seeds."""
    train(config(tmp_path / "a", data, *overrides("EqualizationLossV2", "ClassAwareSampler")))
    state = contents(tmp_path / "a")
    assert {"loss.positive_gradient", "body.1.running_mean"} <= set(state["model"])
    assert state["trainer"]["_trainer"]["optimizer"]["state"]
    assert state["trainer"]["data_loader"] == {"seed": 1, "images": 40}
    (process,) = state["trainer"]["processes"]
    assert {"torch", "numpy", "python", "cuda"} == set(process["random"])
    train(config(tmp_path / "b", data, *overrides(WITH_RANKING[0], "ClassAwareSampler")))
    assert contents(tmp_path / "b")["model"]["ranking_loss.region_count"].any()
    train(config(tmp_path / "b", data, "SEED", "2"))
    with pytest.raises(AssertionError):
        assert_same(contents(tmp_path / "b"), state)


@pytest.mark.parametrize("options", [("SEED", "-1"), ("DATALOADER.ASPECT_RATIO_GROUPING", "False")])
def test_workers_of_the_loader(tmp_path, data, options, monkeypatch):
    """A run with workers resumes exactly; it equals one without, if the seed is given."""
    monkeypatch.setattr("tests.engine.toy_training.seed_all_rng", lambda seed: seed_all_rng(3))
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 17)
    workers = ("DATALOADER.NUM_WORKERS", "2")
    train_whole_and_in_parts(tmp_path, data, *options, *workers)
    assert_same(contents(tmp_path / "parts"), contents(tmp_path / "whole"))
    train(config(tmp_path / "alone", data, *options))
    assert_same(contents(tmp_path / "alone"), contents(tmp_path / "whole"))


# ---- two processes


def resume_pairs(folder, data, cases, stopped):
    """In each process: every case whole and in parts, and the rest of a stopped training."""
    for loss, sampler in cases:
        name = Path(folder, f"{loss}-{sampler}")
        train_whole_and_in_parts(name, data, *overrides(loss, sampler))
    if stopped is not None:
        train(config(stopped, data), resume=True)
        train(config(Path(folder, "never_stopped"), data))


def stop_a_pair(folder, data, pid):
    train(config(folder, data), interruption=Interruption(6, signal.SIGTERM, pid=pid))


def test_two_processes(tmp_path, data, monkeypatch):
    """The same with two processes, each with its numbers; and after a SIGTERM to their parent."""
    with pytest.raises(StopRequested) as stopped:
        launch_pair(monkeypatch, stop_a_pair, tmp_path / "stopped", data, os.getpid())
    assert stopped.value.code == 143
    (saved,) = (tmp_path / "stopped").glob("*.pth")
    assert 6 <= int(saved.stem[-7:]) <= 9
    launch_pair(monkeypatch, resume_pairs, tmp_path, data, SHORT_PAIRS, tmp_path / "stopped")
    check_pairs(tmp_path, SHORT_PAIRS)
    assert_same(contents(tmp_path / "stopped"), contents(tmp_path / "never_stopped"))


@pytest.mark.reliability
def test_two_processes_all(tmp_path, data, monkeypatch):
    """20 steps = 10 + kill + resume + 10 in two processes, of every loss with every sampler."""
    launch_pair(monkeypatch, resume_pairs, tmp_path, data, LONG, None)
    check_pairs(tmp_path, LONG)


def check_pairs(folder, cases):
    for loss, sampler in cases:
        whole = contents(folder / f"{loss}-{sampler}" / "whole")
        assert_same(contents(folder / f"{loss}-{sampler}" / "parts"), whole, f"{loss}-{sampler}")
        first, second = whole["trainer"]["processes"]
        assert not torch.equal(first["random"]["torch"], second["random"]["torch"])
        assert {"body.1.running_mean", "body.1.running_var"} == set(second["buffers"])


# ---- killed at any moment


def train_always_saving(folder, data, resume):
    """With a loss whose state is lost if a checkpoint is."""
    saving = ("SOLVER.CHECKPOINT_PERIOD", "1", "LONG_TAIL.LOSS.NAME", "EqualizationLossV2")
    return train(config(folder, data, *saving), resume=resume)


@pytest.mark.parametrize(
    "kills", [3, pytest.param(100, marks=pytest.mark.reliability)], ids=["short", "long"]
)
def test_killed_at_random_moments(tmp_path, data, kills):
    """SIGKILL at random moments, of many some while a file is written, loses nothing."""
    whole = start(train_always_saving, tmp_path / "whole", data, False)
    begin = time.monotonic()
    whole.join()
    duration = time.monotonic() - begin
    assert whole.exitcode == 0
    draws, killed, unfinished, round_number = random.Random(0), 0, 0, 0
    while killed < kills:
        round_number += 1
        folder = tmp_path / f"round_{round_number}"
        for _ in range(4):
            process = start(train_always_saving, folder, data, True)
            process.join(draws.uniform(0.1, 0.9) * duration)
            if process.exitcode is not None:
                break
            process.kill()
            killed += 1
            process.join()
            unfinished += any(folder.glob("*.part"))
        train_always_saving(folder, data, True)
        assert_same(contents(folder), contents(tmp_path / "whole"))
        assert not list(folder.glob("*.part"))
    assert unfinished or kills < 100


KILLED_AT = 4
NEWEST = f"model_{KILLED_AT:07d}.pth"


def kill_in_write(folder, data, function, name):
    """Die as a file of a later checkpoint is about to reach the disk, or to take its name."""
    call = getattr(os, function)

    def fatal(*args):
        is_later = name == NEWEST or Path(folder, NEWEST).exists()
        if is_later and any(folder.glob(f"{name}.*.part")):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)

    setattr(os, function, fatal)
    train_always_saving(folder, data, False)


@pytest.fixture(scope="module")
def always_saved(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("always_saved")
    train_always_saving(folder, data, False)
    return contents(folder)


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("name", [NEWEST, HISTORY_FILE, LAST_FILE])
def test_killed_in_the_middle_of_a_write(tmp_path, data, always_saved, function, name):
    """SIGKILL while any of the files of a checkpoint is written loses nothing."""
    process = start(kill_in_write, tmp_path, data, function, name)
    process.join(TIMEOUT)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.part"))) == 1
    assert (tmp_path / NEWEST).exists() == (name != NEWEST)
    assert train_always_saving(tmp_path, data, True).start_iter == KILLED_AT
    assert not list(tmp_path.glob("*.part"))
    assert_same(contents(tmp_path), always_saved)


# ---- damaged checkpoints


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    file.write_bytes(b"")


def tear(file):
    """What a power failure leaves: the size is right, a block is not."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, tear, Path.unlink], ids=lambda f: f.__name__)
def test_previous_checkpoint_is_used(tmp_path, data, damage, caplog):
    """A newest checkpoint that is cut, torn or gone is reported, and the one before is used."""
    cfg = config(tmp_path / "run", data, "SOLVER.CHECKPOINT_PERIOD", "5")
    train(cfg)
    expected = contents(tmp_path / "run")
    for name in ("model_final.pth", "model_0000019.pth"):
        damage(tmp_path / "run" / name)
    # Of another training, whose file happens to have a later number.
    torch.save({}, tmp_path / "run" / "model_0000099.pth")
    trainer = train(cfg, resume=True)
    assert trainer.start_iter == 15
    assert "model_0000014.pth, because " in caplog.text
    assert "model_final.pth is " in caplog.text and "model_0000019.pth is " in caplog.text
    assert_same(contents(tmp_path / "run"), expected)


def test_killed_before_the_final_checkpoint(tmp_path, data):
    """A run whose last step is saved, but not as model_final.pth, has that after resuming."""
    cfg = config(tmp_path, data, "SOLVER.CHECKPOINT_PERIOD", "5")
    train(cfg)
    expected = contents(tmp_path)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    assert train(cfg, resume=True).start_iter == 20
    assert_same(contents(tmp_path), expected)


def test_no_checkpoint_is_whole(tmp_path, data):
    """If none can be used, the run ends with one sentence instead of starting from scratch."""
    cfg = config(tmp_path, data)
    train(cfg)
    for file in tmp_path.glob("*.pth"):
        cut(file)
    with pytest.raises(ValueError, match="cannot resume: .*model_0000009.pth is incomplete"):
        train(cfg, resume=True)


def test_unfinished_files_are_removed(tmp_path, data):
    """What a killed process was writing does not fill the disk."""
    (tmp_path / "model_0000004.pth.123.part").write_bytes(b"half")
    (tmp_path / "somebody_elses.part").write_bytes(b"")
    train(config(tmp_path, data, "SOLVER.MAX_ITER", "1"))
    assert [file.name for file in tmp_path.glob("*.part")] == ["somebody_elses.part"]


# ---- asked to stop


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stops_with_a_checkpoint(tmp_path, data, number, status):
    """SIGTERM and Ctrl-C end a run after its step, with a checkpoint and a status of their own."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(config(tmp_path / "whole", data))
    cfg = config(tmp_path / "stopped", data)
    with pytest.raises(StopRequested) as stopped:
        train(cfg, interruption=Interruption(6, number))
    assert stopped.value.code == status
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert [file.name for file in (tmp_path / "stopped").glob("*.pth")] == ["model_0000007.pth"]
    assert train(cfg, resume=True).start_iter == 8
    assert_same(contents(tmp_path / "stopped"), contents(tmp_path / "whole"))


def test_stopped_at_the_last_step(tmp_path, data, monkeypatch):
    """A run that is stopped at its end has its final checkpoint, and is evaluated by resuming."""
    evaluations = []
    monkeypatch.setattr(LongTailTrainer, "test", lambda *args: evaluations.append(0) or {})
    cfg = config(tmp_path, data)
    with pytest.raises(StopRequested):
        train(cfg, interruption=Interruption(18, signal.SIGTERM))
    assert (tmp_path / "model_final.pth").exists() and not evaluations
    train(cfg, resume=True)
    assert len(evaluations) == 1


def test_second_interrupt_ends_at_once(tmp_path, data):
    """Ctrl-C twice does not wait for the step; the last checkpoint is there to go on from."""
    train(config(tmp_path / "whole", data))
    cfg = config(tmp_path / "stopped", data)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, interruption=Interruption(12, signal.SIGINT, times=2))
    assert train(cfg, resume=True).start_iter == 10
    assert_same(contents(tmp_path / "stopped"), contents(tmp_path / "whole"))


@pytest.mark.parametrize(
    "period, owner, name",
    [
        ("TEST.EVAL_PERIOD", LongTailTrainer, "test"),
        ("LONG_TAIL.VALIDATION_LOSS_PERIOD", validation_loss, "_annotated_images"),
    ],
)
def test_evaluation_does_not_delay_the_end(tmp_path, data, monkeypatch, period, owner, name):
    """SIGTERM during an evaluation, or a validation loss, ends it with a checkpoint of the step."""
    overrides = ("DATASETS.TEST", f"('{DATASET}',)", period, "4")
    monkeypatch.setattr(LongTailTrainer, "test", lambda *args: {})
    train(config(tmp_path / "whole", data, *overrides))

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    cfg = config(tmp_path / "stopped", data, *overrides)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(StopRequested):
            train(cfg)
    assert [file.name for file in (tmp_path / "stopped").glob("*.pth")] == ["model_0000003.pth"]
    assert train(cfg, resume=True).start_iter == 4
    assert_same(contents(tmp_path / "stopped"), contents(tmp_path / "whole"))
