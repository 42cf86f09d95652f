"""
GAP loss at the size of LVIS: 4,096 regions of 1,203 classes, 64 to 1,024 of them positive.

The baselines are the definition, one positive after the other as in tests/ops/ranking_reference.py
(the official code is such a loop), and torch's softmax cross entropy of the same logits. Everything
is timed with its gradient.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import DEVICE, Case, Contest, Target, main
from lt_detectron2.losses import GAPLoss
from tests.ops import ranking_reference

REGIONS, CLASSES = 4096, 1203
POSITIVES = (64, 256, 1024)
LOGITS = ("initial", "trained")
TOLERANCE = 5e-6
"""Of the largest entry; the loop itself adds up in float32."""


def set_up(regions: int, classes: int, positives: int, logits: str) -> Contest:
    """
    One batch, in float32, on the GPU if there is one.

    Args:
        regions, classes: sizes of the scores, without the background's column.
        positives: regions of a class; classes are long-tailed, about 50, 150 and 350 are present.
        logits: "initial" has no class stand out, "trained" tells most positives from negatives.
    """
    generator = torch.Generator().manual_seed(0)
    frequency = (1.7 * torch.randn(classes, generator=generator)).exp()
    targets = torch.full((regions,), classes)
    rows = torch.randperm(regions, generator=generator)[:positives]
    targets[rows] = torch.multinomial(frequency, positives, True, generator=generator)
    output = torch.randn(regions, classes + 1, generator=generator)
    if logits == "initial":
        output *= 0.6
    else:
        output = 1.5 * output - 6
        output[rows, targets[rows]] = 2 * torch.randn(positives, generator=generator) - 1
    rows, targets, output = (tensor.to(DEVICE) for tensor in (rows, targets, output))
    output.requires_grad_()
    gap = GAPLoss(classes, statistic=False, weight=1.0).to(DEVICE)

    def candidate() -> tuple[Tensor, Tensor]:
        loss = gap(output[:, :classes], targets).loss
        return loss.detach(), torch.autograd.grad(loss, output)[0]

    def loop() -> tuple[Tensor, Tensor]:
        labels = targets[rows]
        same_class = labels[:, None] == labels
        factor = 1 / (same_class.sum(dim=1) * len(labels.unique()))
        errors, gradient = ranking_reference.ranking_errors(
            output[:, :classes], rows * classes + labels, labels, factor
        )
        return (factor * errors).sum(), gradient

    def cross_entropy() -> Tensor:
        return torch.autograd.grad(F.cross_entropy(output, targets), output)[0]

    def check() -> float:
        loss, gradient = candidate()
        expected_loss, expected_gradient = loop()
        assert gradient[:, classes].eq(0).all(), "the background's column must not be ranked"
        difference = (gradient[:, :classes] - expected_gradient).abs().max()
        error = max(
            float(difference / expected_gradient.abs().max()),
            float((loss - expected_loss).abs() / expected_loss),
        )
        assert error <= TOLERANCE, f"differs from the loop by {error:.1e}"
        return error

    contestants = {"GAPLoss": candidate, "loop": loop, "cross_entropy": cross_entropy}
    return Contest(contestants, check, unit_bytes=4 * regions * classes)


def targets(case: Case) -> list[Target]:
    """What is claimed in docs/methods.md."""
    speedup = 150.0 if case.sizes["positives"] >= 1024 else 60.0
    return [Target("loop", at_least=speedup), Target("cross_entropy", at_most=15.0)]


CASES = [
    Case(
        f"{positives} positives, {logits} logits",
        set_up,
        {"regions": REGIONS, "classes": CLASSES, "positives": positives, "logits": logits},
    )
    for positives in POSITIVES
    for logits in LOGITS
]

if __name__ == "__main__":
    sys.exit(main("ranking", CASES, targets, max_extra_tensors=6))
