"""What the programs that draw figures have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from .runs import exit_status


def figure_parser(name: str, description: str) -> argparse.ArgumentParser:
    """
    The command line of a figure, with its ``--output``.

    Args:
        name: of the module.
        description: its docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m lt_detectron2.analysis.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", default=f"{name}.png", help="the figure; its numbers go to a CSV beside it"
    )
    return parser


def add_runs(parser: argparse.ArgumentParser, nargs: str | int = "+") -> None:
    """The positional argument ``runs``, and what to call them."""
    parser.add_argument("runs", nargs=nargs, help="output folders, a baseline first")
    parser.add_argument("--labels", nargs="+", help="what to call them; by default their folders")


def labels_of(arguments: argparse.Namespace) -> list[str]:
    """One label for each of ``arguments.runs``; raises UserError if there are not as many."""
    labels = arguments.labels or [Path(run).resolve().name for run in arguments.runs]
    if len(labels) != len(arguments.runs):
        raise UserError(f"expected {len(arguments.runs)} --labels, got {len(labels)}: one a run")
    return labels


def draw_and_exit(draw: Callable[[], Path]) -> None:
    """Draw a figure, print where it is, and end the program; errors of users are one sentence."""
    sys.exit(exit_status(lambda: print(draw())))
