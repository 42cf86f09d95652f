"""Commands of the documentation are understood by their programs, with configs that exist."""

import argparse
import importlib.util
import json
import re
import runpy
import shlex
import sys

import pytest

from lt_detectron2.commands import command_line
from lt_detectron2.data.synthetic.example import write_example
from lt_detectron2.engine.setup import load_config
from lt_detectron2.evaluation.__main__ import main as evaluate

from .pages import PAGES, REPOSITORY, blocks, commands, text_of

COMMANDS = {
    shlex.join(command): command
    for page in PAGES
    for command in commands(page)
    if command[0] not in ("pip", "source")
}
TAKE_NOTHING = ("benchmarks.report", "tests.parity")
"""Programs without options, which would do their work here."""


class Understood(Exception):
    """Raised instead of what a program would do with its arguments."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments


@pytest.fixture
def parse_only(monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, *arguments, **keywords):
        raise Understood(parse(parser, *arguments, **keywords))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.chdir(REPOSITORY)


def start(command, monkeypatch):
    """Run a program as its command line does."""
    program, *words = command
    if program == "torchrun":
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    if program == "lt-detectron2":
        command_line.main(words)
    elif words[0] == "-m":
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_module(words[1], run_name="__main__")
    else:
        assert (REPOSITORY / words[0]).is_file(), words[0]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.syspath_prepend(str((REPOSITORY / words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line, parse_only, monkeypatch):
    command = COMMANDS[line]
    if command[0] == "make":
        targets = re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE)
        assert {word for word in command[1:] if "=" not in word} <= set(targets)
    elif command[:2] == ["python", "-m"] and command[2] in TAKE_NOTHING:
        assert importlib.util.find_spec(command[2])
    else:
        with pytest.raises(Understood) as understood:
            start(command, monkeypatch)
        check_config(understood.value.arguments)


def check_config(arguments):
    """The config exists, unless it is the reader's own, and has the keys that are given."""
    config = getattr(arguments, "config_file", None)
    overrides = getattr(arguments, "opts", None) or getattr(arguments, "overrides", None) or []
    if config is None:
        return
    # The reader's files are not here.
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    own = [word for pair in pairs if not pair[0].startswith("LONG_TAIL.DATA.") for word in pair]
    config = config if config.startswith("configs/") else ""
    load_config(config, own)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with `my_data`, and two runs on it whose detections are the annotations."""
    folder = tmp_path_factory.mktemp("docs")
    _, val = write_example(folder / "my_data")
    annotations = json.loads(val.read_text(encoding="utf-8"))["annotations"]
    detections = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "score": 1 / (2 + number % 7),
        }
        for number, entry in enumerate(annotations)
    ]
    (folder / "results.json").write_text(json.dumps(detections))
    for run in ("softmax", "my"):
        folder_of_run = folder / "output" / run / "inference"
        evaluate([str(val), str(folder / "results.json"), "--output", str(folder_of_run)])
    return folder


EXECUTED = (
    "python -m lt_detectron2.evaluation my_data",
    "lt-detectron2 compare output/softmax output/my",
    "lt-detectron2 recommend my_data/train.json --images my_data/images",
)


@pytest.mark.parametrize(
    "line", [line for line in COMMANDS if line.startswith(EXECUTED) and "--base" not in line]
)
def test_command_runs(line, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    # The reader's run has a file of detections and counts; ours has detections as JSON only.
    words = line.replace("output/my/inference/detections.npz", "results.json").split()
    words = [word for word in words if not word.endswith(("--statistics", "statistics.json"))]
    if words[0] == "python":
        evaluate(words[3:])
    else:
        assert command_line.main(words[1:]) == 0
    assert re.search(r"\bAPr?\b", capsys.readouterr().out)


@pytest.mark.parametrize("page", [page for page in PAGES if "tutorial" not in page])
def test_python_blocks_run(page, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    for block in blocks(page, "python"):
        sketches = ("(...)", "class MyLoss", "register_dataset", "exported/")
        if any(sketch in block for sketch in sketches):
            continue  # the last two are run by the tests of own data and of exported files
        exec(compile(PRELUDE + block, page, "exec"), {})


PRELUDE = """
import torch
from torch import nn
features, targets = torch.randn(4, 1024), torch.tensor([0, 3, 1202, 1203])
"""
