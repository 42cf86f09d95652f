"""The commands of the page on reports are understood, and its pictures are there."""

import re
import shlex
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from lt_detectron2.commands.command_line import _parser
from lt_detectron2.engine.setup import check_config, load_config

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "run_report.md").read_text(encoding="utf-8")
BLOCKS = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [shlex.split(line) for line in BLOCKS.splitlines()]


def test_pictures_are_there():
    pictures = re.findall(r"!\[.+\]\((.+?)\)", PAGE)
    assert len(pictures) == 2
    assert all((REPOSITORY / "docs" / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "lt-detectron2"])
def test_subcommands(command):
    options = _parser(command[1:]).parse_args(command[1:])
    assert callable(options.run)


def test_training(tmp_path, monkeypatch):
    (command,) = [c for c in COMMANDS if c[0] == "python"]
    assert command[1] == "train_net.py"
    arguments = default_argument_parser().parse_args(command[2:])
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = load_config(arguments.config_file, [*arguments.opts, "OUTPUT_DIR", str(tmp_path)])
    check_config(cfg, arguments)
    assert cfg.LONG_TAIL.BEST_CHECKPOINT == "bbox/APr"
    assert cfg.LONG_TAIL.WRITERS[-1] == "csv"


def test_table_names_every_section():
    from lt_detectron2.analysis.run_report import SECTIONS

    assert re.findall(r"^\| ([A-Z][a-z ]+?) \|", PAGE, re.MULTILINE) == list(SECTIONS)
