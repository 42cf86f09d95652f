#!/usr/bin/env python3
"""
Run the tests with other versions of Python, torch, NumPy and Detectron2.

    python tools/compatibility.py                    # every cell that this machine can run
    python tools/compatibility.py oldest-torch       # one cell
    python tools/compatibility.py --list
    python tools/compatibility.py --table            # and write the results into the documentation
    python tools/compatibility.py detectron2-main --detectron2 ~/detectron2

Each cell is an environment of its own under build/compatibility, of 5 to 7 GB, kept for the next
time unless --discard is given. Pythons are those on the PATH or of pyenv; what is missing is
skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import reliability
from install_detectron2 import LAYOUT
from reliability import IN_PARALLEL, ROOT
from setup_environment import pinned, want_of_space

FOLDER = ROOT / "build" / "compatibility"
TORCH_ONLY = (
    *("tests/losses", "tests/ops", "tests/layers", "tests/calibration"),
    *("tests/test_statistics.py", "tests/test_files.py"),
)
TEST_PROGRAMS = (
    *("pytest", "pytest-xdist", "hypothesis"),
    *("execnet", "iniconfig", "packaging", "pluggy", "pygments", "sortedcontainers"),
)


@dataclass(frozen=True)
class Cell:
    """
    One environment and the tests that run in it.

    Args:
        python: version, or "" for the one that runs this.
        packages: what is installed first.
        rest: what is installed then. "pinned": what `make test` does, which keeps a torch that is
            there. "lowest": the rest of setup.py in its lowest versions, and Detectron2.
            "nothing": no more than pytest.
        extras: what is installed at the end, without the packages that it asks for.
        tests: files and folders.
        detectron2_main: a source tree of Detectron2 main takes the place of the wheel.
    """

    python: str = ""
    packages: tuple[str, ...] = ()
    rest: str = "pinned"
    extras: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("tests",)
    detectron2_main: bool = False

    def __str__(self) -> str:
        """What is special about it."""
        packages = ", ".join(self.packages)
        rest = {
            "pinned": "pinned packages",
            "lowest": "lowest versions of setup.py",
            "nothing": "no other package, tests of the losses",
        }[self.rest]
        return ", ".join(filter(None, (packages, rest, *self.extras)))


CELLS = {
    "oldest-torch": Cell(
        packages=("torch==2.4.1", "numpy==1.26.4"), rest="nothing", tests=TORCH_ONLY
    ),
    "oldest-everything": Cell("3.10", rest="lowest"),
    "torch-2.4": Cell(packages=("torch==2.4.1", "torchvision==0.19.1")),
    "newest-torch": Cell(packages=("torch", "torchvision")),  # what `pip install torch` gives
    **{f"python-{version}": Cell(version) for version in ("3.10", "3.11", "3.12", "3.13")},
    "detectron2-main": Cell(extras=("timm",), detectron2_main=True),  # of its Swin Transformer
}


@dataclass
class Outcome:
    """A row of the table."""

    cell: str
    python: str
    torch: str
    numpy: str
    detectron2: str
    tests: str
    passed: int
    skipped: int
    failed: int
    minutes: float
    commit: str

    HEADER = (
        "| cell | Python | torch | NumPy | Detectron2 | tests | passed | skipped | failed "
        "| minutes | commit |\n|---|---|---|---|---|---|--:|--:|--:|--:|---|"
    )

    def __str__(self) -> str:
        failed = f"**{self.failed}**" if self.failed else "0"
        return (
            f"| {self.cell} | {self.python} | {self.torch} | {self.numpy} | {self.detectron2} "
            f"| {self.tests} | {self.passed:,} | {self.skipped:,} | {failed} | {self.minutes:.0f} "
            f"| {self.commit} |"
        )


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


def lowest_versions() -> list[str]:
    """The requirements of setup.py as pip's, each at the release it names as the first."""
    text = (ROOT / "setup.py").read_text("utf-8")
    return [f"{name}=={low}.*" for name, low in re.findall(r'"([A-Za-z][\w.-]*)>=([\d.]+)"', text)]


def prepare(name: str, cell: Cell, python: str) -> Path:
    """The interpreter of a cell's environment, made if need be, or if it was made for others."""
    venv = FOLDER / name
    venv_python = venv / "bin" / "python"
    pip = [str(venv_python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    ready, wanted = venv / ".ready", "\n".join([repr(cell), *lowest_versions(), *pinned()])
    is_newest = any("==" not in package for package in cell.packages)  # another one each time
    if is_newest or not ready.is_file() or ready.read_text("utf-8") != wanted:
        run([python, "-m", "venv", str(venv)])
        if cell.rest == "nothing":
            run([*pip, *cell.packages, *pinned(*TEST_PROGRAMS)])
        elif cell.rest == "lowest":
            others = pinned("setuptools", "wheel", "mkdocs-material", "pymdown-extensions")
            run([*pip, *cell.packages, *lowest_versions(), *others])
            # Declares the OpenCV of a desktop; ours is there already.
            run([*pip, "--no-deps", *pinned("lvis")])
            run([str(venv_python), str(ROOT / "tools/install_detectron2.py")])
            run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
        elif cell.packages:
            run([*pip, "--upgrade", *cell.packages])
    if cell.rest == "pinned":
        run(["make", "environment", f"VENV={venv}", f"PYTHON={python}"])
    if cell.extras:
        run([*pip, "--no-deps", *cell.extras])
    ready.write_text(wanted, "utf-8")
    return venv_python


def assemble(tree: Path) -> Path:
    """Lay a source tree of Detectron2 out as its setup.py would; returns the folder to import."""
    if not (tree / "detectron2" / "__init__.py").is_file():
        raise SystemExit(
            f"{tree} is no source tree of Detectron2: it has no detectron2/__init__.py"
        )
    folder = FOLDER / "source" / "detectron2-main"  # not a cell's, which has its environment there
    shutil.rmtree(folder, ignore_errors=True)
    zoo = folder / "detectron2" / "model_zoo" / "configs"
    for source, target in LAYOUT.items():
        shutil.copytree(tree / source, folder / target, ignore=shutil.ignore_patterns("configs"))
    shutil.copytree(tree / "configs", zoo)
    return folder


def commit(folder: Path) -> str:
    """The short name of what is checked out, with a + if other files than the table differ."""
    git = ["git", "-C", str(folder)]
    changed = [*git, "status", "--porcelain", "--untracked-files=no", ":/", ":!docs/reliability*"]
    name, changes = (
        subprocess.run(command, capture_output=True, text=True).stdout.strip()
        for command in ([*git, "rev-parse", "--short", "HEAD"], changed)
    )
    return name + "+" * bool(changes)


def run(command: Sequence[str], **environment: str) -> None:
    """
    Run a command in the repository, without the PYTHONPATH of who runs this.

    Raises:
        CalledProcessError: it failed.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, cwd=ROOT, env={**inherited, **environment}, check=True)


VERSIONS = """
import json, platform, numpy, torch
print(json.dumps([platform.python_version(), torch.__version__, numpy.__version__]))
"""


def counts(report: Path) -> tuple[int, int, int]:
    """Passed, skipped and failed tests of a junit report."""
    suites = list(xml.parse(report).iter("testsuite"))
    total, skipped, failures, errors = (
        sum(int(suite.get(kind, 0)) for suite in suites)
        for kind in ("tests", "skipped", "failures", "errors")
    )
    return total - skipped - failures - errors, skipped, failures + errors


def test(name: str, cell: Cell, detectron2: Path | None, pytest_args: Sequence[str]) -> Outcome:
    """
    Run a cell.

    Raises:
        CalledProcessError: its environment cannot be made, or its tests do not start.
    """
    python = str(prepare(name, cell, interpreter(cell.python)))
    paths, version = [ROOT], "0.6" if cell.rest != "nothing" else "none"
    if cell.detectron2_main:
        paths.insert(0, assemble(detectron2))
        version = f"main {commit(detectron2)}".strip()
    environment = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    versions = subprocess.run(
        [python, "-c", VERSIONS], capture_output=True, text=True, check=True
    ).stdout
    report = FOLDER / f"{name}.xml"
    report.unlink(missing_ok=True)
    tested = commit(ROOT)
    command = [python, "-m", "pytest", "-q", f"--junitxml={report}", *IN_PARALLEL]
    command += [*cell.tests, *pytest_args]
    start = time.monotonic()
    try:
        run(command, **environment)
    except subprocess.CalledProcessError:
        if not report.is_file():
            raise
    minutes = (time.monotonic() - start) / 60
    what = "losses" if cell.tests == TORCH_ONLY else "all"
    numbers = (version, what, *counts(report), minutes, tested)
    return Outcome(name, *json.loads(versions.splitlines()[-1]), *numbers)


def missing(cell: Cell, detectron2: Path | None) -> str:
    """Why a cell cannot run here, or ""."""
    if interpreter(cell.python) is None:
        return f"python{cell.python} is not on the PATH"
    if cell.detectron2_main and detectron2 is None:
        return "give --detectron2 and its source tree"
    return ""


def with_row(notes: str, outcome: Outcome) -> str:
    """
    The notes with a cell's row in the table of cells, in the place of an older one of its.

    Raises:
        ValueError: the notes have no such table.
    """
    before, found, after = notes.partition(Outcome.HEADER + "\n")
    if not found:
        raise ValueError("the notes have no table of cells: expected the line of its header")
    lines = after.split("\n")
    end = next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))
    rows = {line.split("|")[1].strip(): line for line in lines[:end]}
    rows[outcome.cell] = str(outcome)
    ordered = [rows[name] for name in CELLS if name in rows]
    return before + found + "\n".join([*ordered, *lines[end:]])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", nargs="*", metavar="cell", help=", ".join(CELLS))
    parser.add_argument("--list", action="store_true", help="say what can run here, run nothing")
    parser.add_argument("--detectron2", type=Path, help="source tree of Detectron2 main")
    parser.add_argument("--pytest-args", default="", help="further arguments of pytest")
    parser.add_argument("--table", action="store_true", help="write docs/reliability*.md")
    parser.add_argument("--discard", action="store_true", help="remove each environment after use")
    options = parser.parse_args()
    unknown = sorted(set(options.cells) - set(CELLS))
    if unknown:
        parser.error(f"no cell {', '.join(unknown)}: expected some of {', '.join(CELLS)}")
    results, failed = {}, False
    for name in options.cells or CELLS:
        cell = CELLS[name]
        reason = missing(cell, options.detectron2)
        if reason or options.list:
            results[name] = f"skipped: {reason}" if reason else str(cell)
            continue
        try:
            outcome = test(name, cell, options.detectron2, shlex.split(options.pytest_args))
        except subprocess.CalledProcessError as error:
            results[name] = f"FAILED: status {error.returncode} of {shlex.join(error.cmd[:6])}"
            results[name] += want_of_space(FOLDER / name)
            failed = True
            continue
        finally:
            if options.discard:
                shutil.rmtree(FOLDER / name, ignore_errors=True)
        results[name] = str(outcome)
        failed |= outcome.failed > 0
        if options.table:
            reliability.write_notes(with_row(reliability.NOTES.read_text("utf-8"), outcome))
    width = max(map(len, results))
    print("\n".join(f"{name:<{width}}  {result}" for name, result in results.items()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
