"""What is wrong with a command line is said in one sentence, before anything starts."""

import argparse
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lt_detectron2.config import add_long_tail_config
from lt_detectron2.engine.launch import launch
from lt_detectron2.engine.setup import (
    check_config,
    forget_earlier_training,
    keeping_config_of_training,
    load_config,
)
from lt_detectron2.errors import CheckpointError, ConfigError, UserError
from lt_detectron2.modeling.classification_loss import build_classification_loss

DEMO = "configs/SynthLT/eqlv2_demo.yaml"


def arguments(**given):
    return argparse.Namespace(**{"eval_only": False, **given})


def test_config_nodes_are_the_signatures():
    cfg = load_config("", [])
    assert cfg.LONG_TAIL.LOSS.EqualizationLossV2.GAMMA == 12.0
    assert cfg.LONG_TAIL.LOSS.SeesawLoss.EPS == 0.01
    assert cfg.LONG_TAIL.LOSS.EqualizationLoss.FREQUENCY_THRESHOLD is None


def test_hyper_parameters_reach_the_loss():
    cfg = load_config(
        "", ["LONG_TAIL.LOSS.NAME", "SeesawLoss", "LONG_TAIL.LOSS.SeesawLoss.P", "0.3"]
    )
    assert build_classification_loss(cfg, None).p == 0.3


def test_adding_the_config_twice_changes_nothing():
    cfg = load_config(DEMO).clone()
    cfg.defrost()
    add_long_tail_config(cfg)
    assert cfg.LONG_TAIL.LOSS.NAME == "EqualizationLossV2"


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["LONG_TAIL.LOSS.SeesawLoss.PP", "1"], "did you mean LONG_TAIL.LOSS.SeesawLoss.P"),
        (["SOLVER.BASE_LRR", "1"], "did you mean SOLVER.BASE_LR"),
        (
            ["LONG_TAIL.LOSS.SeesawLoss.P", "'much'"],
            "command line: .*SeesawLoss.P' expects a float, got a text: write one like 2.0",
        ),
        (["LONG_TAIL.LOSS.SeesawLoss.P", "1"], "write 2.0, not 2"),
        (["SEED.A.B", "1"], "command line: config key 'SEED.A.B' does not exist, and part of it"),
        (["", "1"], "command line: expected a config key, got ''"),
        (["SOLVER.MAX_ITER", "9", "--resume"], "--resume stands behind config keys"),
        (["SOLVER.MAX_ITER", "9", "SEED"], "pairs of a config key and its value, got 3 words"),
    ],
)
def test_mistyped_keys(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", overrides)


def test_no_such_config_file():
    with pytest.raises(ConfigError, match="no config file 'configs/none.yaml'"):
        load_config("configs/none.yaml")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["LONG_TAIL.LOSS.NAME", "SeasawLoss"], "expected one of: .*SeesawLoss"),
        (["DATASETS.TRAIN", "('synthlt_demo_trian',)"], "did you mean synthlt_demo_train"),
        (
            ["DATASETS.TEST", "('lvis_v1_val',)"],
            "annotations of test set 'lvis_v1_val' are missing",
        ),
        (["OUTPUT_DIR", "/proc/nowhere"], "cannot be written"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "CHECKPOINT_PERIOD is 0, expected 1 or more"),
    ],
)
def test_refused_before_training(tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    demo = os.path.join(os.path.dirname(__file__), "..", "..", DEMO)
    with pytest.raises(ConfigError, match=message):
        check_config(load_config(demo, overrides), arguments())


def test_evaluation_needs_weights(tmp_path):
    cfg = load_config(DEMO, ["OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(ConfigError, match="--eval-only needs a checkpoint"):
        check_config(cfg, arguments(eval_only=True))


def test_evaluation_keeps_the_config_of_the_training(tmp_path):
    config = tmp_path / "config.yaml"
    with keeping_config_of_training(str(tmp_path)):
        config.write_text("SEED: 1")
    with keeping_config_of_training(str(tmp_path)):  # that of an earlier evaluation
        config.write_text("SEED: 2")
    assert config.read_text() == "SEED: 2"
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with keeping_config_of_training(str(tmp_path)):
        config.write_text("SEED: 3")
    assert config.read_text() == "SEED: 2"
    assert not list(tmp_path.glob("*.of_training*"))


def test_config_of_the_training_survives_a_full_disk_and_a_kill(tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    config.write_text("SEED: 2")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")

    def no_room(*arguments):
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"), monkeypatch.context() as full:
        with keeping_config_of_training(str(tmp_path)):
            config.write_text("")
            full.setattr(Path, "write_bytes", no_room)
            full.setattr("builtins.open", no_room)
            no_room()
    assert config.read_text() == "SEED: 2"
    config.rename(tmp_path / "config.yaml.of_training.1")
    config.write_text("SEED: 3")  # and the evaluation was killed
    with keeping_config_of_training(str(tmp_path)):
        config.write_text("SEED: 4")
    assert config.read_text() == "SEED: 2"
    config.write_text("SEED: 5")
    forget_earlier_training(str(tmp_path))
    with keeping_config_of_training(str(tmp_path)):
        config.write_text("SEED: 6")
    assert config.read_text() == "SEED: 5"


@pytest.mark.parametrize("ends_first", [0, 1])
def test_evaluations_at_the_same_time_keep_the_config(tmp_path, monkeypatch, ends_first):
    config = tmp_path / "config.yaml"
    config.write_text("SEED: 2")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    both = []
    for process in (10, 9):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        both.append(keeping_config_of_training(str(tmp_path)))
        both[-1].__enter__()
        config.write_text(f"SEED: {process}")
    both[ends_first].__exit__(None, None, None)
    config.write_text("SEED: 3")  # of the other, late
    both[1 - ends_first].__exit__(None, None, None)
    assert config.read_text() == "SEED: 2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "last_checkpoint"]


def test_evaluation_finds_its_weights_first(tmp_path):
    cfg = load_config("", ["MODEL.WEIGHTS", "nothing.pth", "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(CheckpointError, match="no checkpoint at 'nothing.pth'"):
        check_config(cfg, arguments(eval_only=True))


def test_hyper_parameter_out_of_range():
    cfg = load_config(
        "", ["LONG_TAIL.LOSS.NAME", "SeesawLoss", "LONG_TAIL.LOSS.SeesawLoss.P", "-1.0"]
    )
    with pytest.raises(ConfigError, match="LONG_TAIL.LOSS.SeesawLoss: p must be .* got -1"):
        build_classification_loss(cfg, None)


def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot be used .* pass --dist-url auto"):
            launch(print, 2, dist_url=url)


def refuse(message):
    raise ConfigError(message)


def break_down(message):
    raise RuntimeError(message)


def test_what_stops_a_process_reaches_the_user():
    with pytest.raises(UserError, match="^expected this,\nfound that$"):
        launch(refuse, 2, args=("expected this,\nfound that",))
    with pytest.raises(Exception, match="RuntimeError: a bug"):  # with its traceback
        launch(break_down, 2, args=("a bug",))


@pytest.mark.parametrize("url", ["tcp://10.0.0.1", "tcp://10.0.0.1:99999", "tcp://:50000"])
@pytest.mark.parametrize("rank", [0, 1])
def test_url_without_a_port(url, rank):
    with pytest.raises(ConfigError, match=f"'{url}' names no port of a machine: give tcp://"):
        launch(print, 1, num_machines=2, machine_rank=rank, dist_url=url)


def test_auto_url_is_for_one_machine():
    with pytest.raises(ConfigError, match="address of machine 0"):
        launch(print, 1, num_machines=2, dist_url="auto")


def test_the_program_shows_no_traceback():
    command = [sys.executable, "train_net.py", "--config-file", DEMO, "LONG_TAIL.LOSS.NAME", "Oops"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    expected = f"error: {DEMO} and command line: LONG_TAIL.LOSS.NAME is 'Oops'"
    assert done.stderr.strip().splitlines()[-1].startswith(expected)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text, message",
    [
        ("VERSION: -1", "config.yaml: config key 'VERSION' is none that Detectron2 knows: write 2"),
        ("VERSION: x", "config.yaml: config key 'VERSION' is none that Detectron2 knows: write 2"),
        ("", "config.yaml: expected keys and values, found an empty file: compare"),
        ("[1, 2]", "config.yaml: expected keys and values, found .1, 2.: compare it with"),
        ("SOLVER: [1]", "config.yaml: config key 'SOLVER' stands for a group of keys, got a list"),
        ("MODEL: 7", "config.yaml: config key 'MODEL' stands for a group of keys, got an int"),
        ("SEEED: 7", "config.yaml: config key 'SEEED' does not exist; did you mean SEED"),
    ],
)
def test_config_files_are_named(tmp_path, text, message):
    """What is wrong with a file is not taken for a fault of the command line."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path), ["SEED", "1"])
