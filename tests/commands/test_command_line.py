"""The command line around the subcommands: help, lazy imports, errors without a traceback."""

import errno
import importlib
import json
import os
import subprocess
import sys

import pytest

from lt_detectron2.commands import COMMANDS
from lt_detectron2.commands.command_line import INTERRUPTED, USER_ERROR, main
from lt_detectron2.errors import UserError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    module = importlib.import_module(f"lt_detectron2.commands.{name.replace('-', '_')}")
    assert module.__doc__.strip().splitlines()[0] in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from lt_detectron2.commands.command_line import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'detectron2', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_python_m():
    done = subprocess.run(
        [sys.executable, "-m", "lt_detectron2", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip()


@pytest.mark.parametrize("arguments", [[], ["nothing"]])
def test_no_such_command(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserError("mend it"), USER_ERROR, "error: mend it"),
        (KeyboardInterrupt, INTERRUPTED, "stop"),
        (PermissionError(13, "Permission denied", "out"), USER_ERROR, "Permission denied: 'out'"),
        (OSError(errno.ENOSPC, "No space left on device"), USER_ERROR, "No space left"),
    ],
)
def test_errors_are_shown_without_traceback(monkeypatch, capsys, error, status, text):
    def fail(*_):
        raise error

    monkeypatch.setattr("lt_detectron2.commands.stats.is_annotation_file", fail)
    assert main(["stats", "any.json"]) == status
    printed = capsys.readouterr().err
    assert text in printed and "Traceback" not in printed


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("lt_detectron2.commands.stats.is_annotation_file", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        main(["stats", "any.json"])


def test_letters_that_the_terminal_lacks(tmp_path):
    """As in a container without a locale, whose users still have classes with names."""
    categories = [{"id": 1, "name": "\u732b"}]
    image = {"id": 1, "file_name": "a.png", "width": 9, "height": 9}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    path = tmp_path / "\u6807\u6ce8.json"
    content = {"images": [image], "annotations": [box], "categories": categories}
    path.write_text(json.dumps(content), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "lt_detectron2", "stats", str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "\\u732b" in done.stdout
