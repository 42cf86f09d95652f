"""When a Triton kernel runs, and that it computes what torch's operations do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lt_detectron2.losses import EqualizationLossV2
from lt_detectron2.ops import implementations
from lt_detectron2.ops.implementations import triton_obstacle, uses_triton, version_obstacle
from tests.losses.factory import batch

from .kernel_cases import logits, operations

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(version_obstacle() is not None, reason=str(version_obstacle()))


def _run(name: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
    run = subprocess.run(
        command, env={**os.environ, **environment}, cwd=HERE.parents[1], capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


@needs_triton
def test_interpreted_kernels_equal_torch():
    _run("interpreted_kernels.py", TRITON_INTERPRET="1")


@needs_triton
def test_kernels_compile_for_gpus():
    _run("compiled_kernels.py", TRITON_INTERPRET="0")


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch):
    """A machine that has all that Triton needs."""
    monkeypatch.setattr(implementations, "triton_obstacle", lambda: None)
    monkeypatch.setattr(implementations, "is_interpreted", lambda: False)


def test_automatic_choice_on_the_cpu_is_torch(ready: None):
    assert not uses_triton("auto", torch.zeros(2, 3))
    assert not uses_triton("torch", torch.zeros(2, 3))


class _OnGpu:
    is_cuda, device, dtype = True, torch.device("cuda", 0), torch.float32


def test_automatic_choice_on_a_gpu(ready: None, monkeypatch: pytest.MonkeyPatch):
    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    gpu = _OnGpu()
    assert uses_triton("auto", gpu) and uses_triton("triton", gpu)
    assert not uses_triton("auto", gpu, has_kernel=False)
    capability[0] = (6, 1)
    assert not uses_triton("auto", gpu)
    capability[0] = (8, 0)
    gpu.dtype = torch.float64
    assert not uses_triton("auto", gpu)
    gpu.dtype = torch.float32
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not uses_triton("auto", gpu)
    monkeypatch.setattr(implementations, "triton_obstacle", lambda: "something is missing")
    assert not uses_triton("auto", gpu)
    with pytest.raises(
        ValueError, match='implementation="triton" .*: something is missing; "auto"'
    ):
        uses_triton("triton", gpu)


def test_impossible_choice_is_refused(ready: None):
    with pytest.raises(ValueError, match="the logits are on the device cpu, and kernels run on"):
        uses_triton("triton", torch.zeros(2, 3))
    gpu = _OnGpu()
    with pytest.raises(ValueError, match="no kernel was written for these terms"):
        uses_triton("triton", gpu, has_kernel=False)
    gpu.dtype = torch.float64
    with pytest.raises(ValueError, match="logits are of torch.float64, and kernels compute in"):
        uses_triton("triton", gpu)
    with pytest.raises(ValueError, match="implementation must be one of .*, got 'cuda'"):
        uses_triton("cuda", gpu)


@pytest.mark.parametrize(
    "missing, expected",
    [
        ("triton", "the package triton is not installed"),
        (
            "a new triton",
            "Triton 3.5.1 is installed, and the kernels were tested with 3.6 and later",
        ),
        ("compiler", "neither gcc nor clang is on the PATH"),
        ("headers", "needs Python's header files"),
        ("", None),
    ],
)
def test_what_triton_needs(missing: str, expected: str | None, monkeypatch: pytest.MonkeyPatch):
    class Headers:
        def __init__(self, *parts: str):
            pass

        def is_file(self) -> bool:
            return missing != "headers"

    monkeypatch.setattr(implementations, "is_interpreted", lambda: False)
    found = None if missing == "triton" else object()
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: found)
    version = "3.5.1" if missing == "a new triton" else "3.10.0"
    monkeypatch.setattr(implementations.importlib.metadata, "version", lambda name: version)
    which = None if missing == "compiler" else "/usr/bin/gcc"
    monkeypatch.setattr(implementations.shutil, "which", lambda name: which)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(implementations, "Path", Headers)
    obstacle = triton_obstacle.__wrapped__()
    assert obstacle is None if expected is None else expected in obstacle


def test_losses_pass_their_setting_on(ready: None):
    loss = EqualizationLossV2(12)
    loss.implementation = "triton"
    with pytest.raises(ValueError, match='implementation="triton" is impossible here'):
        loss(*batch(loss, dtype=torch.float32))


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_triton_is_not_imported_where_torch_runs(name: str):
    before = set(sys.modules)
    operations(7, 5)[name](logits(7, 5), reduction="mean").loss.backward()
    assert not {module for module in set(sys.modules) - before if module.endswith("_triton")}
