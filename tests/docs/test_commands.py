"""Commands of the documentation are understood by their programs, with configs that exist."""

import argparse
import importlib.util
import json
import re
import shlex

import pytest

from lt_detectron2.data.synthetic.example import write_example
from lt_detectron2.engine.setup import load_config

from .pages import PAGES, REPOSITORY, blocks, commands, start, text_of

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
    """A folder with `my_data`, and detections on it, which are the annotations."""
    folder = tmp_path_factory.mktemp("docs")
    _, val = write_example(folder / "my_data")
    annotations = json.loads(val.read_text(encoding="utf-8"))["annotations"]
    keys = ("image_id", "category_id", "bbox")
    detections = [{key: entry[key] for key in keys} | {"score": 0.5} for entry in annotations]
    (folder / "results.json").write_text(json.dumps(detections))
    return folder


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
