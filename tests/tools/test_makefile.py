"""`make demo` and `make test` set up what is missing, once."""

import os
import shutil
import subprocess

import pytest
from build_wheelhouse import ROOT

from benchmarks.harness import MISSED

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def run_make(*arguments: str) -> subprocess.CompletedProcess:
    """Run make without the settings of a make that runs this test."""
    inherited = (
        "MAKEFLAGS",
        "MAKEOVERRIDES",
        "MAKELEVEL",
        "MFLAGS",
        "PYTEST_ARGS",
        "VENV",
        "PYTHON",
    )
    environment = {key: value for key, value in os.environ.items() if key not in inherited}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def commands(*arguments: str) -> str:
    """What make would run."""
    result = run_make("--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("target", ["demo", "test"])
def test_either_target_sets_up_first_and_only_once(target, tmp_path):
    before = commands(target, f"VENV={tmp_path}")
    assert f"tools/setup_environment.py --venv {tmp_path}" in before
    (tmp_path / ".lt_detectron2-ready").touch()
    after = commands(target, f"VENV={tmp_path}")
    assert "setup_environment" not in after
    assert before.endswith(after)


def test_demo_and_test_run_in_the_environment(tmp_path):
    (tmp_path / ".lt_detectron2-ready").touch()
    assert commands("demo", f"VENV={tmp_path}").split() == [
        f"{tmp_path}/bin/python",
        "-m",
        "lt_detectron2.analysis.demo",
    ]
    last = commands("test", f"VENV={tmp_path}").splitlines()[-1]
    assert last.split()[:4] == [f"{tmp_path}/bin/python", "-m", "pytest", "tests"]


BENCHMARKS = (
    *("inference", "masks", "training_step", "ranking", "data", "losses", "evaluation"),
    "report",
)


@pytest.mark.parametrize(
    "status, reached", [(0, BENCHMARKS), (MISSED, BENCHMARKS), (1, BENCHMARKS[:1])]
)
def test_only_a_missed_bound_lets_the_other_benchmarks_run(status, reached, tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    log = tmp_path / "log"
    python.write_text(
        f'#!/bin/sh\necho "$2" >> {log}\ntest "$2" = benchmarks.report || exit {status}\n'
    )
    python.chmod(0o755)
    (tmp_path / ".lt_detectron2-ready").touch()
    result = run_make("bench", f"VENV={tmp_path}")
    assert log.read_text().split() == [f"benchmarks.{name}" for name in reached]
    assert (result.returncode == 0) == (reached == BENCHMARKS), result.stderr


def test_python_may_be_a_version(tmp_path):
    assert "python3.12 tools/setup_environment.py" in commands(
        "test", f"VENV={tmp_path}", "PYTHON=3.12"
    )
    assert "python3 tools/build_wheelhouse.py --python-version 3.12" in commands(
        "wheelhouse", "PYTHON=3.12"
    )


def test_a_python_that_is_missing_is_named(tmp_path):
    result = run_make("test", f"VENV={tmp_path}", "PYTHON=python3.1")
    assert result.returncode != 0
    assert "python3.1 is missing or older than 3.10" in result.stderr
    assert not list(tmp_path.iterdir())
