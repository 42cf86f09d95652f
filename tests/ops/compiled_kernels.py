"""
The Triton kernels compiled for GPUs, without one: test_triton.py runs this file in a process of its
own, since Triton is made to believe in a device.

What the interpreter lets pass and the compiler does not, such as a variable that changes its type,
shows here; so does a kernel that needs more registers than there are.
"""

import re

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import KernelInterface

from lt_detectron2.ops import implementations, softmax_ce_triton
from lt_detectron2.ops.one_pass_triton import scale_rows_

from .kernel_cases import logits, operations

ROWS, COLUMNS = 8192, 1203


class Driver:
    """A GPU that can be compiled for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(autouse=True)
def compiled(tmp_path, monkeypatch: pytest.MonkeyPatch) -> list:
    """What was compiled instead of being launched."""
    kernels = []

    def compile_only(kernel: KernelInterface, grid: tuple) -> object:
        return lambda *args, **options: kernels.append(
            kernel.run(*args, grid=grid, warmup=True, **options)
        )

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(KernelInterface, "__getitem__", compile_only)
    monkeypatch.setattr(implementations, "is_interpreted", lambda: True)
    driver.set_active(Driver())
    return kernels


@pytest.mark.parametrize("name", operations(1, 5))
def test_compiles(name: str, compiled: list):
    operations(ROWS, COLUMNS)[name](
        logits(ROWS, COLUMNS), implementation="triton", class_gradients=True
    )
    assert compiled and not any(map(_spills, compiled))


@pytest.mark.parametrize("name", ["gumbel", "gumbel, official"])
def test_clamping_keeps_what_is_not_a_number(name: str, compiled: list):
    """The interpreter's maximum always does, a GPU's only if it is told to."""
    operations(ROWS, COLUMNS)[name](logits(ROWS, COLUMNS), implementation="triton")
    (kernel,) = compiled
    counts = [kernel.asm["ptx"].count(f"{bound}.NaN.f32") for bound in ("max", "min")]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", ["softmax", "softmax, everything"])
def test_long_rows_compile(name: str, compiled: list):
    columns = softmax_ce_triton.MAX_BLOCK + 1
    operations(64, columns)[name](
        logits(64, columns), implementation="triton", class_gradients=True
    )
    assert compiled


def test_backward_compiles(compiled: list):
    scale_rows_(torch.zeros(ROWS, COLUMNS), torch.tensor(2.0))
    assert not any(map(_spills, compiled))


def _spills(kernel: object) -> bool:
    """Whether registers do not suffice, so that the assembler kept some in memory."""
    return bool(re.search(r"\b(STL|LDL)\b", kernel.asm["sass"]))
