"""
Every classification loss, with its gradient, against torch's softmax cross entropy.

A quarter of the regions is foreground, classes are as frequent as on LVIS. "plain" is the same loss
written with autograd and dense matrices, as most code does, without growing its state; "compiled"
is torch.compile of that, for one loss of each family and if there is a C++ compiler; "copy"
reads the logits once and writes as much once, the least that any loss with a gradient must do.

On a GPU, "torch" is our loss without its Triton kernels, and cases called "captured" replay CUDA
graphs, so that they measure the device's work and not how fast the host launches it: there the
copy is the floor, and all losses are compared with their compiled versions.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import DEVICE, REPEATS, Case, Contest, Target, main
from lt_detectron2 import losses
from lt_detectron2.losses.base import ClassificationLoss
from lt_detectron2.ops.one_pass import OnePass
from lt_detectron2.statistics import ClassStatistics
from tests.ops import cross_entropy_reference as reference

SIZES = [(regions, classes) for regions in (512, 4096, 8192) for classes in (80, 1203)]
MAIN_SIZE = (4096, 1203)
ON_GPU = DEVICE == "cuda"
MAX_EXTRA_TENSORS = 3
TOLERANCE = 2e-5
"""Of the largest entry, in float32."""
AT_MOST = {
    "DropLoss": 4.0,
    "EffectiveClassMarginLoss": 2.5,
    "EqualizationLoss": 1.6,
    "EqualizationLossV2": 3.0,
    "EqualizedFocalLoss": 6.0,
    "FBSAEGLoss": 4.0,
    "FederatedLoss": 1.7,
    "GroupSoftmaxLoss": 1.0,
    "GumbelLoss": 4.0,
    "SeesawLoss": 4.0,
}
"""Times that a loss may take of a cross entropy at the main size, on a CPU."""
COMPILED = ("EqualizationLoss", "SeesawLoss")
FLOOR = 1.5
"""Times that a loss may take of a copy, on a GPU with 8192 regions of 1203 classes."""
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""
Of glibc. Freed memory is kept: whether it goes back to the system depends on what was freed before,
and fetching it anew takes longer than a cross entropy.
"""
PATCHED = {
    "sigmoid_cross_entropy": ("cross_entropy", "federated"),
    "softmax_cross_entropy": ("cross_entropy", "equilibrium", "group_softmax", "seesaw"),
}
"""Modules of losses that call an operation."""


def loss_names() -> list[str]:
    """Exported classification losses."""
    exported = [(name, getattr(losses, name)) for name in losses.__all__]
    return [
        name
        for name, item in exported
        if inspect.isclass(item) and issubclass(item, ClassificationLoss)
    ]


def set_up(
    name: str, regions: int, classes: int, compiled: bool, captured: bool = False
) -> Contest:
    """
    One batch in float32, on the GPU if there is one.

    Args:
        compiled: with a contestant of that name.
        captured: replay CUDA graphs.
    """
    generator = torch.Generator().manual_seed(0)
    statistics = lvis_like_statistics(classes)
    loss, plain_loss = (_build(name, statistics) for _ in range(2))
    targets = torch.full((regions,), classes)
    foreground = torch.randperm(regions, generator=generator)[: regions // 4]
    chances = statistics.instance_count.double()
    targets[foreground] = torch.multinomial(chances, len(foreground), True, generator=generator)
    logits = 1.5 * torch.randn(regions, loss.num_logits, generator=generator) - 3
    reference_logits = torch.randn(regions, classes + 1, generator=generator)
    targets, logits, reference_logits = (
        tensor.to(DEVICE) for tensor in (targets, logits, reference_logits)
    )
    logits.requires_grad_()
    reference_logits.requires_grad_()

    def candidate() -> tuple[Tensor, Tensor]:
        return _with_gradient(loss(logits, targets), logits)

    def cross_entropy() -> tuple[Tensor, Tensor]:
        return _with_gradient(F.cross_entropy(reference_logits, targets), reference_logits)

    def plain(module: torch.nn.Module) -> tuple[Tensor, Tensor]:
        with _plain_operations():
            return _with_gradient(module(logits, targets), logits)

    def copy() -> Tensor:
        return logits.detach().clone()

    plain_loss.eval()
    contestants = {
        name: candidate,
        "cross_entropy": cross_entropy,
        "plain": lambda: plain(plain_loss),
        "copy": copy,
    }
    if compiled and shutil.which("c++"):
        contestants["compiled"] = functools.partial(plain, torch.compile(plain_loss))
        contestants["compiled"]()  # compiles
    if ON_GPU:
        torch_loss = _build(name, statistics)
        torch_loss.implementation = "torch"
        contestants["torch"] = lambda: _with_gradient(torch_loss(logits, targets), logits)
    functions = contestants
    if captured:
        functions = {key: _captured(function) for key, function in contestants.items()}

    def check() -> float:
        outputs = []
        for function in (candidate, contestants["plain"]):
            loss.eval()  # so that the state of both is the same
            torch.manual_seed(0)  # and what they draw
            outputs.append(function())
            loss.train()
        error = max(
            float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
            for ours, theirs in zip(*outputs)
        )
        assert error <= TOLERANCE, f"{name} differs from the plain version by {error:.1e}"
        return error

    return Contest(functions, check, unit_bytes=4 * logits.numel())


def _captured(function: Callable[[], object]) -> Callable[[], None]:
    """A function that replays on the device what ``REPEATS`` calls have launched."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            function()
    return graph.replay


def lvis_like_statistics(classes: int) -> ClassStatistics:
    """Counts with LVIS v1's shares of classes with up to 10, 100, 1000 and more objects."""
    place = torch.linspace(0, 1, classes, dtype=torch.float64)
    shares, decades = torch.tensor([0, 0.167, 0.51, 0.789, 1.0]).double(), [0.0, 1.0, 2.0, 3.0, 4.5]
    bin_of = torch.bucketize(place, shares[1:-1])
    low, high = shares[bin_of], shares[bin_of + 1]
    start = torch.tensor(decades, dtype=torch.float64)[bin_of]
    end = torch.tensor(decades, dtype=torch.float64)[bin_of + 1]
    instances = (10 ** (start + (end - start) * (place - low) / (high - low))).long()
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(1))
    instances = instances[order]
    return ClassStatistics(instances, (instances / 2.7).ceil().long(), 100_000)


def _build(name: str, statistics: ClassStatistics) -> ClassificationLoss:
    loss_class = getattr(losses, name)
    wired = (statistics,) if "statistics" in inspect.signature(loss_class).parameters else ()
    loss = loss_class(statistics.num_classes, *wired).to(DEVICE)
    loss.implementation = "auto"  # the Triton kernels on a GPU
    return loss


def _with_gradient(value: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach(), torch.autograd.grad(value, logits)[0]


def _plain_operations() -> ExitStack:
    stack = ExitStack()
    for operation, modules in PATCHED.items():
        for module in modules:
            target = f"lt_detectron2.losses.{module}.{operation}"
            stack.enter_context(mock.patch(target, globals()[f"_plain_{operation}"]))
    return stack


def _plain_sigmoid_cross_entropy(
    logits: Tensor, targets: Tensor, weights: object = None, *, reduction: str, **options: object
) -> OnePass:
    for option in ("class_gradients", "implementation"):
        options.pop(option, None)
    value = reference.sigmoid_losses(logits, targets, weights, **options)
    return OnePass(value.mean() if reduction == "mean" else value)


def _plain_softmax_cross_entropy(
    logits: Tensor, *parts: object, reduction: str = "none", **options: object
) -> OnePass:
    value = reference.softmax_losses(logits, *parts)
    return OnePass(value.mean() if reduction == "mean" else value)


def targets(case: Case) -> list[Target]:
    """What is claimed in docs/performance.md."""
    size = (case.sizes["regions"], case.sizes["classes"])
    if ON_GPU:
        return [Target("copy", at_most=FLOOR)] if case.sizes.get("captured") else []
    if size != MAIN_SIZE or case.sizes["name"] not in AT_MOST:
        return []
    return [Target("cross_entropy", at_most=AT_MOST[case.sizes["name"]])]


def is_short(case: Case) -> bool:
    """Cases of the short form: losses with a bound; without compiling, which takes minutes."""
    size = (case.sizes["regions"], case.sizes["classes"])
    bounded = case.sizes["name"] in AT_MOST
    return size == MAIN_SIZE and bounded and not case.sizes["compiled"]


def _case(name: str, regions: int, classes: int, **switches: bool) -> Case:
    sizes = {"name": name, "regions": regions, "classes": classes, "compiled": False, **switches}
    label = ", ".join([f"{name} {regions}x{classes}", *switches])
    return Case(label, set_up, sizes)


CASES = [_case(name, *size) for name in loss_names() for size in SIZES]
CASES += [_case(name, *MAIN_SIZE, compiled=True) for name in COMPILED]
if ON_GPU:
    CASES += [_case(name, *SIZES[-1], compiled=True, captured=True) for name in loss_names()]

if __name__ == "__main__":
    for name in ALLOCATOR:
        os.environ.setdefault(name, str(1 << 34))  # read by the processes that measure
    sys.exit(main("losses", CASES, targets, MAX_EXTRA_TENSORS, is_short=is_short))
