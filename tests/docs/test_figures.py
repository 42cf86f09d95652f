"""The page of figures shows every figure, with a command that its program understands."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.analysis.test_programs import PROGRAMS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "figures.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m (lt_detectron2(?:[^\\\n]|\\\n)*)", PAGE, re.MULTILINE)


def test_every_figure_is_shown():
    images = re.findall(r"!\[.+\]\((images/figures/(\w+)\.png)\)", PAGE)
    assert sorted(name for _, name in images) == sorted(PROGRAMS)
    for path, name in images:
        assert (DOCS / path).is_file() and (DOCS / path).with_suffix(".csv").is_file()
        assert f"[`{name}`]" in PAGE
    files = {file.name for file in (DOCS / "images" / "figures").iterdir()}
    shown = {f"{name}.{ending}" for name in PROGRAMS for ending in ("png", "csv")}
    assert files == shown | {"gradient_ratio_over_training.csv"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, monkeypatch):
    module, *arguments = shlex.split(command.replace("\\\n", " "))
    assert module.rsplit(".", 1)[1] in PROGRAMS
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    drawn = []
    figure = importlib.import_module(module)
    monkeypatch.setattr(figure, "draw_and_exit", drawn.append)
    figure.main()
    assert len(drawn) == 1
