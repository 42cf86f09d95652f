"""What is computed with torch's operations and with the Triton kernels, and how it is compared."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.testing import assert_close

from lt_detectron2.losses.equalized_focal import QualityFocalTerms
from lt_detectron2.losses.focal import FocalTerms
from lt_detectron2.losses.gumbel import GumbelTerms
from lt_detectron2.ops import (
    LogitShifts,
    SoftmaxPart,
    TermWeights,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from lt_detectron2.ops.one_pass import OnePass
from lt_detectron2.ops.softmax_ce import Compensation

Operation = Callable[..., OnePass]
BACKGROUND_COLUMNS = 2
"""Targets of sigmoid cases go up to so many beyond the foreground's columns; one has a column."""


def operations(rows: int, columns: int, device: str = "cpu") -> dict[str, Operation]:
    """Functions of logits (R, L) of at least 5 columns, and of what the operations take else."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device)

    def integers(high: int) -> Tensor:
        return torch.randint(high, (rows,), generator=generator).to(device)

    def softmax(*parts: SoftmaxPart) -> Operation:
        return lambda logits, **options: softmax_cross_entropy(logits, *parts, **options)

    def sigmoid(weights: TermWeights | None = None, **options: object) -> Operation:
        return functools.partial(
            sigmoid_cross_entropy, targets=targets, weights=weights, background=columns - 1,
            **options,
        )  # fmt: skip

    strided = random(rows, 2)[:, 1]
    own = integers(columns)
    targets = integers(columns + BACKGROUND_COLUMNS - 1)
    some_rows = random(rows) * (random(rows) > 0.5)
    left_out = torch.where(random(columns) > 0.5, 0.0, -torch.inf)
    seesaw = LogitShifts(
        log_count=3 * random(columns).double(), compensation=Compensation(2.0, -2.0)
    )
    everything = LogitShifts(
        1.5, random(rows, columns), random(columns), random(columns), Compensation(0.5, -3.0),
        random(rows, columns) > 0.3,
    )  # fmt: skip
    tables = TermWeights(random(columns).double(), random(2, columns))
    return {
        "softmax": softmax(SoftmaxPart(own)),
        "softmax, weights": softmax(SoftmaxPart(own, some_rows.double())),
        "softmax, a column left out": softmax(
            SoftmaxPart(own, shifts=LogitShifts(offset=left_out, own_offset=random(columns)))
        ),
        "softmax, scale and offset": softmax(
            SoftmaxPart(own, shifts=LogitShifts(2.0, offset=random(columns).double()))
        ),
        "softmax, seesaw": softmax(SoftmaxPart(own, some_rows > 0, shifts=seesaw)),
        "softmax, everything": softmax(SoftmaxPart(own, some_rows, shifts=everything)),
        "softmax, rows of what is kept": softmax(
            SoftmaxPart(
                own, shifts=LogitShifts(kept=random(3, columns) > 0.3, kept_row=integers(3))
            )
        ),
        "softmax, two parts": softmax(
            # Strided like the columns of a matrix, as the labels and weights of groups are.
            SoftmaxPart(torch.stack([own, own], 1)[:, 1] % 2, None, 0, 2),
            SoftmaxPart(own % (columns - 3), some_rows.expand(2, rows).t()[:, 1], 3),
        ),
        "sigmoid": sigmoid(),
        "sigmoid, tables": sigmoid(tables),
        "sigmoid, one row of tables": sigmoid(
            TermWeights(None, random(columns), random(columns)), offset=random(columns)
        ),
        "sigmoid, everything": sigmoid(
            tables._replace(min_score=random(2, columns), mask=random(rows, columns) > 0.5),
            scale=1.7,
            offset=random(2, columns),
        ),  # fmt: skip
        "sigmoid, rows of a mask": sigmoid(
            tables._replace(mask=random(3, columns), mask_row=integers(3))
        ),
        "focal": sigmoid(terms=FocalTerms(2.0)),
        "focal, each column": sigmoid(tables, terms=FocalTerms(4 * random(columns))),
        "quality focal": sigmoid(terms=QualityFocalTerms(2 + random(columns), strided)),
        "gumbel": sigmoid(tables, terms=GumbelTerms(floored=False)),
        "gumbel, official": sigmoid(tables, terms=GumbelTerms(floored=True)),
    }


def logits(rows: int, columns: int, device: str = "cpu", std: float = 2.0) -> Tensor:
    """Float32 logits that want a gradient."""
    generator = torch.Generator().manual_seed(1)
    values = std * torch.randn(rows, columns, generator=generator)
    return values.to(device).requires_grad_()


def results(operation: Operation, z: Tensor, implementation: str) -> dict[str, Tensor | None]:
    """Everything that an operation and its backward pass tell."""
    rows = operation(z, implementation=implementation, class_gradients=True)
    upstream = torch.arange(len(z), device=z.device, dtype=torch.float32) % 3 - 0.5
    (row_gradient,) = torch.autograd.grad(rows.loss, z, upstream)
    mean = operation(z, implementation=implementation, reduction="mean")
    (gradient,) = torch.autograd.grad(mean.loss, z, retain_graph=True)
    (twice,) = torch.autograd.grad(2 * mean.loss, z)
    plain = operation(z.detach(), implementation=implementation, reduction="mean")
    assert not plain.loss.requires_grad
    return {
        "losses": rows.loss.detach(), "positive": rows.positive_gradient,
        "negative": rows.negative_gradient, "gradient of rows": row_gradient,
        "mean": mean.loss.detach(), "gradient": gradient, "gradient twice": twice,
        "mean without a gradient": plain.loss,
    }  # fmt: skip


def check(operation: Operation, z: Tensor, *, rtol: float = 1e-4, atol: float = 2e-5) -> None:
    """Compare the implementations, and that the kernel leaves alone what it is given."""
    before = z.detach().clone()
    expected = results(operation, z, "torch")
    actual = results(operation, z, "triton")
    assert all(torch.isfinite(value).all() for value in actual.values())
    assert_close(actual, expected, rtol=rtol, atol=atol)
    assert torch.equal(z, before)
    again = results(operation, z, "torch")  # which reads the tables anew
    for name in ("losses", "gradient of rows"):
        assert_close(again[name], expected[name], rtol=1e-6, atol=1e-6)
