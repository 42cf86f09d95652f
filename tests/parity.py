"""
Comparison with the recorded outputs of the official implementations, and the table of it.

Each parity test has "golden" in its name and calls :func:`compare` for every array. pytest prints
the table at its end; ``python -m tests.parity`` runs the parity tests alone and writes the table to
docs/parity.md.
"""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REPORT = Path(__file__).resolve().parents[1] / "docs" / "parity.md"
COLUMNS = ("method", "golden file", "arrays compared", "largest error", "tolerance")

_errors: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
"""(method, file) -> name of the array -> (error, tolerance)."""


def compare(
    method: str, array: str, actual: Any, expected: Any, *, tolerance: float = 1e-6
) -> None:
    """
    Assert that an output equals a recorded array, and remember by how much it differs.

    Args:
        method: what the table calls it; the name of the class under test.
        array: file and key, ``"eqlv2/seq/s0/grad"``.
        actual: tensor, array or number that our code computed.
        expected: the recorded array.
        tolerance: bound of the largest difference, relative to the largest magnitude of the array
            where that exceeds 1.

    Raises:
        AssertionError: shapes differ, a value is not finite, or the difference is too large.
    """
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().cpu().numpy()
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{array}: {actual.shape}, recorded {expected.shape}"
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(actual).all(), f"{array}: not finite"
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    error = float(np.abs(actual - expected).max(initial=0)) / scale
    _errors.setdefault((method, array.split("/")[0]), {})[array] = (error, tolerance)
    assert error <= tolerance, f"{method}, {array}: differs by {error:.3g} (of {scale:.3g})"


def rows() -> list[tuple[str, ...]]:
    """One row a method and file, as text, sorted; what was compared so far in this process."""
    table = []
    for (method, file), arrays in sorted(_errors.items()):
        errors, tolerances = zip(*arrays.values())
        numbers = (str(len(arrays)), f"{max(errors):.0e}", f"{max(tolerances):.0e}")
        table.append((method, file, *numbers))
    return table


def markdown() -> str:
    """The table as Markdown."""
    lines = [COLUMNS, ("---", "---", "--:", "--:", "--:"), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table after the tests; a conftest.py that imports this name gets it."""
    if not _errors:
        return
    table = [COLUMNS, *rows()]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    terminalreporter.section("parity with the official implementations")
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        terminalreporter.write_line("  ".join(cells).rstrip())


def main() -> int:
    """Run the parity tests and write docs/parity.md, unless one failed or none could run."""
    code = pytest.main(["-q", "-k", "golden", "tests"])
    if code or not _errors:
        return int(code) or 1
    compared = sum(len(arrays) for arrays in _errors.values())
    describe = ["git", "-C", str(REPORT.parent), "describe", "--always", "--dirty=+"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(
        "# Parity with the official implementations\n\n"
        "Written by `python -m tests.parity`; do not edit.\n\n"
        f"{compared} recorded arrays (losses, gradients, state after each step, weights, scores)\n"
        "are compared through the public classes. An error is the largest absolute difference,\n"
        "relative to the largest magnitude of the array where that exceeds 1. Tolerances above\n"
        "1e-6 belong to arrays that were recorded in float32. Of fbs_aegl, harmonic, hiou,\n"
        "openimages_eval and eqlv2_2csoftmax_derived no official code was run: they were recorded\n"
        "from the formulas, in plain NumPy.\n\n"
        "The arrays (7 MB) are not part of the repository: they are looked for in\n"
        "`../shared/golden`, or where `LT_DETECTRON2_GOLDEN` says. Without them these comparisons\n"
        "are skipped, and values that were derived by hand are still checked.\n\n"
        f"Commit {commit}, torch {torch.__version__}, {platform.processor() or platform.machine()}"
        ".\n\n"
        f"{markdown()}\n",
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    # Not this module but the one that the tests import holds what they compare.
    from tests import parity

    sys.exit(parity.main())
