"""Each subcommand is a script of tools/ too, which needs no installation."""

import runpy
import subprocess
import sys

import pytest
from build_wheelhouse import ROOT

from lt_detectron2.commands import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_script_is_the_subcommand(name, monkeypatch, capsys):
    script = ROOT / "tools" / f"{name.replace('-', '_')}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert f"usage: lt-detectron2 {name} " in capsys.readouterr().out


def test_from_anywhere_with_the_status_of_the_command(tmp_path):
    script = ROOT / "tools" / "make_lt.py"
    command = [sys.executable, str(script), "nothing.json", "made.json"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]  # libraries may warn of what torch deprecates
    assert said.startswith("error: ") and "nothing.json" in said
