"""Where a result comes from: command, commit, machine and versions, kept beside it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .runs import REPOSITORY

RUN_FILE = "run.json"
PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "pycocotools", "matplotlib")


def provenance() -> dict[str, str]:
    """Commit, machine and versions, to be kept with every result."""
    import torch

    return {
        "commit": _commit(),
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{_cpu_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def record_start(folder: str | Path, *, continues: bool) -> None:
    """
    Keep in ``run.json`` how a run is started: command, time, commit, machine and versions.

    Args:
        folder: of the run.
        continues: the folder's earlier starts belong to the same run.
    """
    start = {
        "command": command_line(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        **provenance(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    starts = [*(read_starts(folder) if continues else []), start]
    Path(folder, RUN_FILE).write_text(json.dumps({"starts": starts}, indent=2), encoding="utf-8")


def read_starts(folder: str | Path) -> list[dict[str, Any]]:
    """The starts of a run, the first one first; nothing where they were not kept."""
    try:
        return json.loads(Path(folder, RUN_FILE).read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError):
        return []


def command_line() -> str:
    """The command that started this process, as a shell takes it."""
    launcher = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    return shlex.join([*launcher, *sys.argv])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Short hash of the checkout, with a + if it was changed; "unknown" outside of one."""
    if not (REPOSITORY / ".git").exists():  # installed: git would find the project around a venv
        return "unknown"
    try:
        git = ["git", "-C", str(REPOSITORY)]
        commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True)
        changed = subprocess.check_output([*git, "status", "--porcelain"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+" if changed.strip() else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
