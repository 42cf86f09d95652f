"""
Say whether everything needed works on this machine, with one line of remedy for what does not.

    lt-detectron2 doctor

Looks at Python, torch and its GPU, torchvision's operators, Detectron2, the data sets under
$DETECTRON2_DATASETS, and the room on the disk. The exit status is 1 if something needed is broken.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .. import __version__
from ..environment import report_environment

GIGABYTE = 1e9
LITTLE_ROOM = 5 * GIGABYTE
"""A training of R50-FPN leaves checkpoints of 0.3 GB each, predictions and logs."""

OPTIONAL = {
    "cv2": ("OpenCV", "videos", "pip install opencv-python-headless"),
    "tensorboard": ("TensorBoard", "its curves", "pip install tensorboard"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--environment", action="store_true", help="only what is needed to run at all"
    )
    parser.add_argument(
        "--output", default=".", help="where trainings will be written (default: .)"
    )


def run(arguments: argparse.Namespace) -> int:
    status = report_environment()
    if arguments.environment:
        return status
    for line in (*_extras(), *_disk(arguments.output)):
        print(line)
    if status:
        print("  data sets    not looked at before what is marked with ! works")
        return status
    print("\n".join(_datasets()))
    return status


def _line(name: str, text: str, mark: str = " ") -> str:
    return f"{mark} {name:<12} {text}"


def _extras() -> Iterator[str]:
    package = Path(__file__).resolve().parents[1]
    yield _line("this package", f"{__version__}, {package}")
    for module, (name, purpose, remedy) in OPTIONAL.items():
        try:
            version = getattr(importlib.import_module(module), "__version__", "there")
            yield _line(name, version)
        except ImportError:
            yield _line(name, f"not there, so no {purpose}: {remedy}", "?")


def _disk(output: str) -> Iterator[str]:
    folder = Path(output).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / GIGABYTE:,.0f} GB free at {folder}"
    if not os.access(folder, os.W_OK):
        yield _line("disk", f"{folder} cannot be written: set OUTPUT_DIR to a folder of yours", "?")
    elif free < LITTLE_ROOM:
        yield _line("disk", f"{text}, which is little: set OUTPUT_DIR to another disk", "?")
    else:
        yield _line("disk", text)


def _datasets() -> Iterator[str]:
    from ..data.dataset_check import verdicts
    from ..data.synthetic import datasets_root

    root = datasets_root()
    if not root.is_dir():
        yield _line(
            "data sets",
            f"no folder {str(root)!r}: your own annotations need none; for COCO and LVIS set "
            "DETECTRON2_DATASETS to the folder that holds them",
            "?",
        )
        return
    found = verdicts(root)
    present = {
        name: verdict for name, verdict in found.items() if not verdict.startswith("nothing")
    }
    listed = ", ".join(f"{name} is {verdict}" for name, verdict in present.items())
    yield _line("data sets", f"under {root.resolve()}: {listed or 'only generated and own ones'}")
    if set(present.values()) & {"damaged", "incomplete"}:
        yield _line("", "what is missing, and from where: python datasets/check.py", "?")
