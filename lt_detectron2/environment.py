"""Whether this Python can run lt_detectron2, and if not, what to do; needs nothing to say so."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

INSTALL_PAIR = (
    "install the two as a pair, e.g. `python -m pip install --force-reinstall torch==2.11.0 "
    "torchvision==0.26.0`, both from the same package index"
)

OLDEST_PYTHON = (3, 10)

SAFE_TORCH = (2, 10)
"""Before it, files can be made that run programs or corrupt memory in spite of ``weights_only``."""


class Broken(RuntimeError):
    """Something needed does not work; the message names the remedy."""


@functools.cache
def warn_of_old_torch(version: str) -> None:
    """Say once, before a checkpoint is read, that this version of torch cannot do it safely."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < SAFE_TORCH:
        logger.warning(
            "torch %s reads weights with known security holes (CVE-2026-24747, before 2.6 also "
            "CVE-2025-32434): load only checkpoints of people you trust, or update torch to 2.10",
            version,
        )


def check_torch() -> str:
    """Return the version of torch and the devices that it sees."""
    try:
        import torch
    except Exception as error:
        raise Broken(f"torch does not load ({error}): {INSTALL_PAIR}") from error
    if torch.cuda.is_available():
        devices = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    elif Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():
        devices = (
            "CPU only, although there is an NVIDIA driver: it is older than this torch needs "
            f"(CUDA {torch.version.cuda}) or another process holds the GPU. Update the driver, or "
            "set TORCH_ARGS to the package index of a build for an older CUDA"
        )
    else:
        devices = "CPU"
    return f"{torch.__version__}, {devices}"


def run_nms(device: str) -> None:
    """
    Run torchvision's non-maximum suppression on three boxes.

    Raises:
        Broken: the operator does not load or gives a wrong answer. A torchvision built for another
            torch imports without complaint and fails at the first image otherwise.
    """
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]], device=device)
        scores = torch.tensor([0.5, 0.9, 0.1], device=device)
        kept = torchvision.ops.nms(boxes, scores, 0.5).tolist()
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Broken(
            f"torchvision's operators do not run on {device} ({reason[0]}): {INSTALL_PAIR}"
        ) from error
    if kept != [1, 2]:
        raise Broken(f"torchvision.ops.nms kept boxes {kept}, expected [1, 2]: {INSTALL_PAIR}")


def check_torchvision() -> str:
    """Return the version of torchvision after running nms on every kind of device present."""
    devices = ["cpu"]
    import torch

    if torch.cuda.is_available():
        devices.append("cuda")
    for device in devices:
        run_nms(device)
    import torchvision

    return f"{torchvision.__version__}, nms runs on {' and '.join(devices)}"


def check_detectron2() -> str:
    """Return where Detectron2 is."""
    try:
        for module in ("engine", "evaluation", "modeling"):
            importlib.import_module(f"detectron2.{module}")
    except Exception as error:
        raise Broken(
            f"detectron2 does not load ({error}): run `python tools/install_detectron2.py`"
        ) from error
    detectron2 = importlib.import_module("detectron2")
    compiled = importlib.util.find_spec("detectron2._C") is not None
    return (
        f"{detectron2.__version__}, {'with' if compiled else 'without'} compiled operators, "
        f"{os.path.dirname(detectron2.__file__)}"
    )


def check_python() -> str:
    """Return the version of Python."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise Broken(f"{platform.python_version()} is older than {oldest}: take a newer one")
    return platform.python_version()


def check_pycocotools() -> str:
    """Return a word when the mask operations, which are compiled, load."""
    try:
        importlib.import_module("pycocotools.mask")
    except Exception as error:
        raise Broken(
            f"pycocotools does not load ({error}): `python -m pip install pycocotools`"
        ) from error
    return "loads"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": check_python,
    "torch": check_torch,
    "torchvision": check_torchvision,
    "detectron2": check_detectron2,
    "pycocotools": check_pycocotools,
}


def report_environment() -> int:
    """Print one line per part; return 1 if one is broken."""
    status = 0
    for name, check in CHECKS.items():
        try:
            print(f"  {name:<12} {check()}", flush=True)
        except Broken as error:
            print(f"! {name:<12} {error}", flush=True)
            status = 1
            if name in ("torch", "torchvision"):
                break  # what follows needs them and would only repeat the error
    return status
