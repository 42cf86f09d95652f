"""What the pages of the documentation hold: fenced blocks, commands, names."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from lt_detectron2.commands import command_line

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md")),
    )
)
PROGRAMS = ("lt-detectron2", "make", "pip", "python", "source", "torchrun")
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(rf"^ {{4}}((?:{'|'.join(PROGRAMS)}) .*)$", re.MULTILINE)


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language; "" for those that name none."""
    return [content for name, content in _FENCED.findall(text_of(page)) if name == language]


def commands(page: str) -> list[list[str]]:
    """
    Every command of a page, split into words; what `$(...)` runs is a command too.

    Blocks of sh and bash hold nothing else. In other blocks, and where code is indented, a command
    is what begins with one of PROGRAMS.
    """
    shell = "".join(blocks(page, "sh") + blocks(page, "bash"))
    other = "\n".join([*blocks(page, ""), *_INDENTED.findall(_FENCED.sub("", text_of(page)))])
    lines = _lines(shell) + [line for line in _lines(other) if line.split()[0] in PROGRAMS]
    inner = [found for line in lines for found in re.findall(r"\$\((.+?)\)", line)]
    lines = [re.sub(r"\$\(.+?\)", "written.yaml", line) for line in lines] + inner
    return [_without_settings(shlex.split(line, comments=True)) for line in lines]


def _lines(script: str) -> list[str]:
    joined = script.replace("\\\n", " ").splitlines()
    # Words of explanation stand far to the right of a command.
    lines = [re.split(r" {3,}(?=[a-z ,]+$)", line.strip())[0] for line in joined]
    return [line for line in lines if line and not line.startswith("#")]


def _without_settings(words: list[str]) -> list[str]:
    """Without leading NAME=value."""
    while "=" in words[0]:
        words = words[1:]
    return words


def start(command: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Run a program in this process as its command line does, and return its exit status."""
    program, *words = command
    if program == "torchrun":
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    try:
        if program == "lt-detectron2":
            return command_line.main(words)
        if words[0] == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_module(words[1], run_name="__main__")
        else:
            path = REPOSITORY / words[0]
            assert path.is_file(), words[0]
            monkeypatch.setattr(sys, "argv", words)
            monkeypatch.syspath_prepend(str(path.parent))
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return None
