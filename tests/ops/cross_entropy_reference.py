"""The two families written down with plain torch and autograd; also the benchmark's baseline."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_detectron2.losses.focal import FocalTerms
from lt_detectron2.losses.gumbel import MAX_LOGIT, MIN_LOGIT, GumbelTerms, gumbel
from lt_detectron2.ops.sigmoid_ce import SIGMOID, BinaryTerms, TermWeights
from lt_detectron2.ops.softmax_ce import LogitShifts, SoftmaxPart


def sigmoid_losses(
    logits: Tensor,
    targets: Tensor,
    weights: TermWeights | None,
    background: int,
    terms: BinaryTerms = SIGMOID,
    scale: float = 1.0,
    offset: Tensor | None = None,
) -> Tensor:
    """(R,) losses, as in the docstring of the operation."""
    x = scale * logits
    if offset is not None:
        is_foreground = (targets < background).long()
        x = x + (offset if offset.dim() == 1 else offset[is_foreground]).to(x.dtype)
    is_own = one_hot(logits, targets)
    scores = gumbel(x) if isinstance(terms, GumbelTerms) else x.sigmoid()
    dense = dense_weights(weights, scores.detach(), targets, background)
    if isinstance(terms, GumbelTerms):
        bounded = gumbel(x.clamp(MIN_LOGIT, MAX_LOGIT))
        losses = F.binary_cross_entropy(bounded, is_own, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(x, is_own, reduction="none")
    if isinstance(terms, FocalTerms):
        losses = losses * F.logsigmoid(torch.where(is_own.bool(), -x, x)).mul(terms.gamma).exp()
    return (dense * losses).sum(dim=1)


def dense_weights(
    weights: TermWeights | None, scores: Tensor, targets: Tensor, background: int
) -> Tensor:
    """(R, L) weights of all terms, written out."""

    def table(entries: Tensor) -> Tensor:
        rows = entries if entries.dim() == 1 else entries[(targets < background).long()]
        return rows.to(scores.dtype)

    own = one_hot(scores, targets).bool()
    dense = torch.ones_like(scores)
    if weights is None:
        return dense
    if weights.negative is not None:
        dense = dense * table(weights.negative)
    if weights.min_score is not None:
        dense = dense * (scores >= table(weights.min_score))
    if weights.mask is not None:
        row = slice(None) if weights.mask_row is None else weights.mask_row
        dense = dense * weights.mask[row]
    positive = torch.ones_like(scores) if weights.positive is None else table(weights.positive)
    return torch.where(own, positive, dense)


def softmax_losses(logits: Tensor, *parts: SoftmaxPart) -> Tensor:
    """(R,) losses, as in the docstring of the operation."""
    total = logits.new_zeros(len(logits))
    for part in parts:
        last = logits.shape[1] if part.size is None else part.first + part.size
        x = shifted(logits[:, part.first : last], part.targets, part.shifts)
        losses = F.cross_entropy(x, part.targets, reduction="none")
        total = total + (losses if part.weights is None else losses * part.weights)
    return total


def shifted(logits: Tensor, targets: Tensor, shifts: LogitShifts) -> Tensor:
    """(R, C) what enters the softmax."""
    z = shifts.scale * logits
    x = z if shifts.offset is None else z + shifts.offset.to(z.dtype)
    own_x = x if shifts.own_offset is None else z + shifts.own_offset.to(z.dtype)
    if shifts.log_count is not None:
        log_count = shifts.log_count.to(z.dtype)
        x = x + (log_count - log_count[targets][:, None]).clamp(max=0)
    if shifts.compensation is not None:
        log_scores = z.detach().log_softmax(dim=1)
        own = log_scores.gather(1, targets[:, None]).clamp(min=shifts.compensation.log_floor)
        x = x + shifts.compensation.exponent * (log_scores - own).clamp(min=0)
    if shifts.kept is not None:
        row = slice(None) if shifts.kept_row is None else shifts.kept_row
        x = x.masked_fill(~shifts.kept[row].bool(), -torch.inf)
    return torch.where(one_hot(logits, targets).bool(), own_x, x)


def one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    """(R, L) in the logits' type; the row of a target without a column is zero."""
    return (targets[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(
        logits.dtype
    )
