"""
Error-driven ranking written down as its definition reads: one positive after the other.

Takes minutes at the size of LVIS. The tests compare with it; the benchmark measures against it.
"""

import torch
from torch import Tensor


def ranking_errors(
    scores: Tensor,
    positives: Tensor,
    groups: Tensor,
    upstream: Tensor,
    *,
    delta: float = 0.5,
    exclude_positives: bool = True,
) -> tuple[Tensor, Tensor]:
    """
    Errors of the positives, and the gradient of ``(upstream * errors).sum()``.

    Args:
        scores: (R, C), computed in their own type.
        positives: (P,) index of each positive in the flat scores.
        groups: (P,) group of each positive.
        upstream: (P,) factor of each error.

    Returns:
        (P,) errors and (R, C) gradient.
    """
    flat = scores.detach().flatten()
    is_positive = torch.zeros_like(flat, dtype=torch.bool)
    is_positive[positives] = True
    errors = flat.new_zeros(len(positives))
    gradient = torch.zeros_like(flat)
    for group in groups.unique():
        members = (groups == group).nonzero().flatten()
        is_negative = ~is_positive
        if not exclude_positives:
            is_negative[positives[groups != group]] = True
        negative_scores = flat[is_negative]
        positive_scores = flat[positives[members]]
        push = torch.zeros_like(negative_scores)
        for member in members:
            own = flat[positives[member]]
            missed = step(negative_scores - own, delta)
            total = step(positive_scores - own, delta).sum() + missed.sum()
            errors[member] = missed.sum() / total
            gradient[positives[member]] -= upstream[member] * errors[member]
            push += upstream[member] * missed / total
        gradient[is_negative] += push
    return errors, gradient.view_as(scores)


def average_precision_errors(
    scores: Tensor, positives: Tensor, upstream: Tensor, *, delta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Errors and gradient of AP loss: as above, of one group, with interpolated precisions."""
    flat = scores.detach().flatten()
    is_negative = torch.ones_like(flat, dtype=torch.bool)
    is_negative[positives] = False
    errors = flat.new_zeros(len(positives))
    gradient = torch.zeros_like(flat)
    best = flat.new_zeros(())
    for member in flat[positives].argsort():
        own = flat[positives[member]]
        missed = step(flat[is_negative] - own, delta)
        found = step(flat[positives] - own, delta).sum() + 0.5
        precision = found / (found + missed.sum())
        best = best.maximum(precision)
        errors[member] = 1 - best
        gradient[positives[member]] -= upstream[member] * (1 - best)
        if precision < 1:
            scale = (1 - best) / (1 - precision)
            share = scale * missed / (found + missed.sum())
            gradient[is_negative] += upstream[member] * share
    return errors, gradient.view_as(scores)


def step(difference: Tensor, delta: float) -> Tensor:
    """H of a difference of scores: 0 below -delta, 1 above delta, linear between."""
    return (difference / (2 * delta) + 0.5).clamp(0, 1)
