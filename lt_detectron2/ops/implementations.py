"""Which implementation of an operation runs: torch's operations, or a Triton kernel of ours."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "torch", "triton")
"""
"auto" is Triton on a GPU where :func:`triton_obstacle` finds nothing against it, else torch; also
torch while torch.compile traces, which fuses torch's operations itself.
"""
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_TRITON = (3, 6)
"""The oldest Triton that the kernels were tested with; torch 2.11 brings it along."""
LEAST_CAPABILITY = (7, 0)
"""Of an NVIDIA GPU, for which Triton compiles."""


def uses_triton(implementation: str, logits: Tensor, *, has_kernel: bool = True) -> bool:
    """
    Whether an operation on these logits is to run its Triton kernel.

    Args:
        implementation: one of ``IMPLEMENTATIONS``.
        has_kernel: whether a kernel was written for what is to be computed.

    Raises:
        ValueError: an unknown name, or "triton" where it cannot run.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    if implementation == "torch":
        return False
    if implementation == "auto":
        return (
            logits.is_cuda
            and has_kernel
            and not torch.compiler.is_compiling()
            and logits.dtype in KERNEL_DTYPES
            and triton_obstacle() is None
            and _is_new_enough(logits.device)
        )
    obstacle = triton_obstacle()
    if not obstacle and not logits.is_cuda and not is_interpreted():
        obstacle = f"the logits are on the device {logits.device}, and kernels run on GPUs"
    if not obstacle and logits.dtype not in KERNEL_DTYPES:
        obstacle = f"the logits are of {logits.dtype}, and kernels compute in float32"
    if not obstacle and not has_kernel:
        obstacle = "no kernel was written for these terms"
    if obstacle:
        raise ValueError(
            f'implementation="triton" is impossible here: {obstacle}; "auto" uses Triton where it '
            "can, and torch elsewhere"
        )
    return True


@functools.cache
def triton_obstacle() -> str | None:
    """What keeps Triton from compiling kernels on this machine, or None. Looks once."""
    if version := version_obstacle():
        return version
    if is_interpreted():
        return None
    # Triton builds a C function for each kernel, to launch it.
    if not ("CC" in os.environ or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, and neither gcc nor clang is on the PATH"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Triton needs Python's header files (on Debian and Ubuntu: python3-dev)"
    return None


def version_obstacle() -> str | None:
    """What is wrong with the Triton that is installed, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TRITON:
        least = ".".join(map(str, LEAST_TRITON))
        return f"Triton {version} is installed, and the kernels were tested with {least} and later"
    return None


def is_interpreted() -> bool:
    """Whether Triton interprets kernels, on any device, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _is_new_enough(device: torch.device) -> bool:
    # AMD's GPUs number their capabilities otherwise; torch supports none that Triton does not.
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
