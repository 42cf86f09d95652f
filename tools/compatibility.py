#!/usr/bin/env python3
"""
Run the tests with other versions of Python, torch, NumPy and Detectron2.

    python tools/compatibility.py                    # every cell that this machine can run
    python tools/compatibility.py oldest-torch       # one cell
    python tools/compatibility.py --list
    python tools/compatibility.py detectron2-main --detectron2 ~/detectron2

Each cell is an environment of its own under build/compatibility, kept for the next time. Cells of
losses need torch only. Pythons are those on the PATH or of pyenv; what is missing is skipped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "compatibility"
TORCH_ONLY = ("tests/losses", "tests/ops", "tests/test_statistics.py")
PINNED = ("pytest", "hypothesis", "pluggy", "iniconfig", "packaging", "sortedcontainers")


@dataclass(frozen=True)
class Cell:
    """
    One environment and the tests that run in it.

    Args:
        python: version, or "" for the one that runs this.
        packages: all that is installed; empty is the environment of `make test`.
        tests: files and folders.
        needs_detectron2: a source tree of Detectron2 main takes the place of the wheel.
    """

    python: str = ""
    packages: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("tests",)
    needs_detectron2: bool = False


CELLS = {
    "oldest-torch": Cell(packages=("torch==2.4.1", "numpy==1.26.4"), tests=TORCH_ONLY),
    "numpy-2": Cell(packages=("torch==2.4.1", "numpy>=2"), tests=TORCH_ONLY),
    "pinned": Cell(),
    **{f"python-{version}": Cell(version) for version in ("3.10", "3.11", "3.12", "3.13")},
    "detectron2-main": Cell(needs_detectron2=True),
}


def interpreter(version: str) -> str | None:
    """The Python of this version that runs, or None."""
    if not version:
        return sys.executable
    installed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")
    for command in (shutil.which(f"python{version}"), *map(str, sorted(installed))):
        # A shim is found also where there is no such Python behind it.
        if command and subprocess.run([command, "-c", ""], capture_output=True).returncode == 0:
            return command
    return None


def prepare(name: str, cell: Cell, python: str) -> Path:
    """The interpreter of a cell's environment, made if need be."""
    shared = "pinned" if cell.needs_detectron2 else name
    venv = FOLDER / shared
    if not cell.packages:
        run(["make", "environment", f"VENV={venv}", f"PYTHON={python}"])
        return venv / "bin" / "python"
    ready = venv / ".ready"
    if not ready.is_file():
        run([python, "-m", "venv", str(venv)])
        pins = [
            line
            for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()
            if line.split("==")[0] in PINNED
        ]
        run([str(venv / "bin" / "pip"), "install", "--quiet", *cell.packages, *pins])
        ready.touch()
    return venv / "bin" / "python"


def run(command: Sequence[str], **environment: str) -> None:
    """Run a command in the repository; raises CalledProcessError where it fails."""
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)


def test(name: str, cell: Cell, detectron2: str, pytest_args: Sequence[str]) -> str:
    """Run a cell; says how it went."""
    python = interpreter(cell.python)
    if python is None:
        return f"skipped: python{cell.python} is not on the PATH"
    if cell.needs_detectron2 and not detectron2:
        return "skipped: give --detectron2 and its source tree"
    start = time.monotonic()
    paths = [str(ROOT), *([detectron2] if cell.needs_detectron2 else [])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    try:
        venv_python = prepare(name, cell, python)
        command = [str(venv_python), "-m", "pytest", "-q", *cell.tests, *pytest_args]
        run(command, **environment)
    except subprocess.CalledProcessError as error:
        return f"FAILED: status {error.returncode} of {' '.join(error.cmd[:6])}"
    return f"passed in {time.monotonic() - start:.0f} s"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", nargs="*", metavar="cell", help=", ".join(CELLS))
    parser.add_argument("--list", action="store_true", help="say what can run here, run nothing")
    parser.add_argument("--detectron2", default="", help="source tree of Detectron2 main")
    parser.add_argument("--pytest-args", default="", help="further arguments of pytest")
    options = parser.parse_args()
    unknown = sorted(set(options.cells) - set(CELLS))
    if unknown:
        parser.error(f"no cell {', '.join(unknown)}: expected some of {', '.join(CELLS)}")
    results = {}
    for name in options.cells or CELLS:
        cell = CELLS[name]
        if options.list:
            found = interpreter(cell.python)
            results[name] = f"{found or 'no Python'}; {', '.join(cell.packages) or 'as make test'}"
        else:
            results[name] = test(name, cell, options.detectron2, options.pytest_args.split())
    width = max(map(len, results))
    print("\n".join(f"{name:<{width}}  {result}" for name, result in results.items()))
    return int(any(result.startswith("FAILED") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
