#!/usr/bin/env python3
"""
Run the tests of reliability in their long form and write docs/reliability.md.

    make reliability
    make reliability PYTEST_ARGS="tests/reliability"      # run a part, write nothing

A row of the table is a test: the first line of its docstring is the property.
"""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
NOTES = ROOT / "docs" / "reliability_notes.md"

IN_PARALLEL = ("--numprocesses=auto", "--maxprocesses=8", "--dist=worksteal")
"""As in `make test`."""

TOPICS = {
    "Resuming": ("tests/engine/test_resume.py", "tests/data/test_loader.py"),
    "Interruptions": ("tests/engine/test_interruptions.py",),
    "Several processes": (
        "tests/losses/test_contract.py::test_two_processes_have_the_state_of_one",
        "tests/losses/test_contract.py::test_two_processes_learn_what_one_does",
        "tests/losses/test_gap.py::test_two_processes_learn_with_the_counts_of_both",
        "tests/engine/test_processes.py",
        "tests/engine/test_steps.py::test_two_processes_reduce_once_a_step",
        "tests/engine/test_training.py::test_two_processes",
        "tests/engine/test_training.py::test_two_machines",
    ),
    "Numbers": ("tests/losses/test_numerics.py", "tests/engine/test_non_finite.py"),
    "Inputs": (
        "tests/reliability/test_annotation_files.py",
        "tests/reliability/test_prediction_files.py",
        "tests/reliability/test_configs.py",
        "tests/reliability/test_image_files.py",
    ),
    "Security": (
        "tests/reliability/test_security.py",
        "tests/data/test_shared_records.py::test_a_file_makes_records_only",
        "tests/data/test_shared_records.py::test_file_of_something_else_is_parsed_anew",
    ),
}
"""Test files, or tests of them, by heading."""


@dataclass
class Row:
    """A test function with all its cases."""

    property: str
    test: str
    cases: int = 0
    inputs: int = 0
    seconds: float = 0.0
    failed: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def result(self) -> str:
        if self.failed:
            return f"**{self.failed} failed**"
        if self.cases == self.skipped:
            return "skipped"
        return "passed" + (f", {self.skipped} skipped" if self.skipped else "")


def first_lines(path: Path) -> dict[str, str]:
    """The first line of each test's docstring, by name."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    documented = {f.name: ast.get_docstring(f) for f in functions if f.name.startswith("test_")}
    return {name: text.splitlines()[0] for name, text in documented.items() if text}


def files_of(topic: str) -> list[str]:
    """Each of them once."""
    return list(dict.fromkeys(name.split("::")[0] for name in TOPICS[topic]))


def run_tests(paths: Sequence[str], report: Path) -> int:
    """Run pytest with the long tests; returns its exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "reliability or not reliability"]
    command += [f"--junitxml={report}", *IN_PARALLEL, *paths]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def rows_by_file(report: Path) -> dict[str, list[Row]]:
    """What a junit report says of the tests that have a docstring, as they stand in their files."""
    found: dict[str, dict[str, Row]] = {}
    for case in xml.parse(report).iter("testcase"):
        name = case.get("classname", "").replace(".", "/") + ".py"
        function = case.get("name", "").split("[")[0]
        path = ROOT / name
        if not path.is_file():
            continue
        text = first_lines(path).get(function)
        if text is None:
            continue
        rows = found.setdefault(name, {})
        row = rows.setdefault(function, Row(text, f"{path.name}::{function}"))
        row.cases += 1
        row.seconds += float(case.get("time", 0))
        row.failed += any(child.tag in ("failure", "error") for child in case)
        row.skipped += any(child.tag == "skipped" for child in case)
        row.inputs += sum(
            int(p.get("value", 0)) for p in case.iter("property") if p.get("name") == "inputs"
        )
    return {
        name: [rows[function] for function in first_lines(ROOT / name) if function in rows]
        for name, rows in found.items()
    }


def page(rows: dict[str, list[Row]]) -> str:
    """docs/reliability.md."""
    everything = [row for of_file in rows.values() for row in of_file]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    minutes = sum(row.seconds for row in everything) / 60
    lines = [
        "# Reliability",
        "",
        "What is promised, and the test that fails when it does not hold. Written by "
        "`make reliability`; do not edit. A short form of each test is part of `make test`.",
        "",
        f"Commit {commit}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} CPU cores: {sum(r.cases for r in everything)} cases with "
        f"{sum(r.inputs for r in everything):,} damaged or odd inputs, {minutes:.0f} minutes of "
        f"tests, {sum(r.failed for r in everything)} failed.",
    ]
    for topic in TOPICS:
        own = [row for name in files_of(topic) for row in rows.get(name, ())]
        if own:
            lines += ["", f"## {topic}", "", "| property | tested by | cases | s | result |"]
            lines += ["|---|---|--:|--:|---|"]
            lines += [
                f"| {row.property} | `{row.test}` | {row.cases}"
                + (f" ({row.inputs:,} inputs)" if row.inputs else "")
                + f" | {row.seconds:.0f} | {row.result} |"
                for row in own
            ]
    return "\n".join(lines) + "\n\n" + NOTES.read_text("utf-8")


def write_notes(text: str) -> None:
    """
    Replace the notes, also where they end the page.

    Raises:
        ValueError: the page does not end with the notes: `make reliability` writes it anew.
    """
    before, page = NOTES.read_text("utf-8"), PAGE.read_text("utf-8")
    if not page.endswith(before):
        raise ValueError(f"{PAGE.name} does not end with {NOTES.name}: run `make reliability`")
    NOTES.write_text(text, "utf-8")
    PAGE.write_text(page.removesuffix(before) + text, "utf-8")


def main() -> int:
    """Run everything and write the page, or run the parts that are named."""
    parts = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "junit.xml")
        status = run_tests(parts or [name for names in TOPICS.values() for name in names], report)
        if not parts and report.is_file():
            PAGE.write_text(page(rows_by_file(report)), "utf-8")
            print(f"{PAGE.relative_to(ROOT)} is written")
    return status


if __name__ == "__main__":
    sys.exit(main())
