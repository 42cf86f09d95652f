"""Balanced group softmax, "BAGS" (CVPR 2020, https://arxiv.org/abs/2006.10408)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import SoftmaxPart, softmax_cross_entropy
from ..statistics import ClassStatistics
from .base import ClassificationLoss, check_non_negative, check_statistics
from .sampling import choose_regions

LAYOUT_NAME = "background group first"
LAYOUT_BYTES = 256
MIN_CLASS_WEIGHT, MAX_CLASS_WEIGHT = 0.1, 5.0


class GroupSoftmaxLoss(ClassificationLoss):
    """
    One softmax for each group of classes that have similarly many objects.

    G groups of classes, bounded by ``edges``, and one group of background and foreground. Every
    group of classes has a logit "others" for regions of other groups and of the background; of
    those, a group takes beta for each region of its own, drawn anew in each step and process. With
    t_g(i) the label of region i in group g, c_g(i) in {0, 1} whether g takes it,

        loss = sum_g 1 / max(A_g, 1) sum_i c_g(i) CE(z_i[g], t_g(i)),   A_g = sum_i c_g(i)

    so the loss is about G + 1 times that of one softmax, as published. A group without a region of
    its own in the step takes none; group 0 takes all. At test time, with p_g the softmax of group
    g, ``score_j = p_0(foreground) p_g(j)[j]`` and the background's is p_0(background); "others" is
    not used and nothing is normalised, so that the scores of a region sum to up to G.

    Columns are (background, foreground), then for each group (others, its classes by index). The
    meaning of a column depends on the counts: they are hashed into the buffer ``layout``, together
    with this order and the edges, and a checkpoint made for another layout is refused.

    In a cascade the official code averages the stages' logits and calls ``scores`` once, instead of
    averaging scores.

    Args:
        statistics: counts of the training set; groups are made from its instance counts.
        edges: instance counts that separate groups, [0, 10), [10, 100), ... A group may be empty.
        beta: how many "others" a group takes for each region of its own, rounded down in total;
            anything large takes all.
        in_group_reweighting: also weigh regions by their class, with the inverse instance count
            over its mean in the group, clipped to [0.1, 5]; "others" weigh 1. An ablation of the
            official code, which has beta 6 there.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        edges: Sequence[int] = (10, 100, 1000),
        beta: float = 8.0,
        in_group_reweighting: bool = False,
    ):
        super().__init__(num_classes)
        check_statistics(statistics, num_classes)
        self.edges = tuple(int(edge) for edge in edges)
        self.beta = check_non_negative("beta", beta)
        self.in_group_reweighting = in_group_reweighting
        num_groups = len(self.edges) + 1
        group = statistics.instance_bins(self.edges)  # (K,)
        classes_in_group = torch.bincount(group, minlength=num_groups)
        self.group_sizes = (2, *(classes_in_group + 1).tolist())
        """Columns of each group, G+1 numbers."""

        by_group = group.argsort(stable=True)
        first_class = classes_in_group.cumsum(0) - classes_in_group
        label = torch.empty_like(group)
        label[by_group] = torch.arange(num_classes) - first_class[group[by_group]] + 1
        first_column = torch.tensor(self.group_sizes).cumsum(0) - torch.tensor(self.group_sizes)
        is_member = F.one_hot(group + 1, num_groups + 1)  # (K, G+1)
        group_labels = is_member * label[:, None]
        group_labels[:, 0] = 1
        group_labels = F.pad(group_labels, (0, 0, 0, 1))  # the background is 0 everywhere
        self.register_buffer("class_group", group, persistent=False)  # (K,), 0..G-1
        self.register_buffer("class_columns", first_column[group + 1] + label, persistent=False)
        self.register_buffer("group_labels", group_labels, persistent=False)  # (K+1, G+1)
        weights = torch.ones(num_classes + 1, num_groups + 1, dtype=torch.float64)
        if in_group_reweighting:
            class_weights = _in_group_weights(statistics.instance_count, group, num_groups)
            weights[:-1] = torch.where(is_member.bool(), class_weights[:, None], 1.0)
        self.register_buffer("group_weights", weights, persistent=False)  # (K+1, G+1)
        text = f"{LAYOUT_NAME}, counts {statistics.fingerprint()}, edges {self.edges}"
        self.register_buffer("layout", _to_bytes(text))

    @property
    def num_logits(self) -> int:
        return sum(self.group_sizes)

    def sampling_mask(self, group_labels: Tensor) -> Tensor:
        """
        Choose the regions that each group takes in this step.

        Args:
            group_labels: (R, G+1) label of each region in each group; 0 is background in the first
                column, "others" elsewhere.

        Returns:
            (R, G+1) 0 or 1. Override it to replay a recorded choice.
        """
        own = group_labels > 0
        quota = (self.beta * own.sum(dim=0).double()).floor()
        draws = self.uniform(group_labels.shape)
        taken = torch.ones_like(own)  # in the group of the background, whatever its quota
        taken[:, 1:] = own[:, 1:] | choose_regions(~own[:, 1:], quota[1:], draws[:, 1:])
        return taken

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        group_labels = self.group_labels[targets]  # (R, G+1)
        weights = self.sampling_mask(group_labels) * self.group_weights[targets]
        # Each group has its own normaliser; the contract divides by the regions.
        weights = weights * (len(targets) / weights.sum(dim=0).clamp(min=1))
        first = [0, *itertools.accumulate(self.group_sizes)]
        parts = map(SoftmaxPart, group_labels.unbind(1), weights.unbind(1), first, self.group_sizes)
        how = self.implementation
        return softmax_cross_entropy(logits, *parts, reduction=reduction, implementation=how).loss

    def activation(self, logits: Tensor) -> Tensor:
        scores = torch.cat([part.softmax(dim=1) for part in self._split(logits)], dim=1)
        background, foreground = scores[:, :1], scores[:, 1:2]
        return torch.cat([foreground * scores[:, self.class_columns], background], dim=1)

    def class_logits(self, logits: Tensor) -> Tensor:
        return logits.index_select(1, self.class_columns)

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        return logits.split(self.group_sizes, dim=1)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(f"{prefix}layout")
        if saved is not None and not torch.equal(saved.cpu(), self.layout.cpu()):
            raise ValueError(
                f"the classifier in the checkpoint has the layout ({_to_text(saved)}), this "
                f"{self._label()} has ({_to_text(self.layout)}): use the edges and the class "
                "counts of that training, or leave classifier and loss out of what is loaded"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _in_group_weights(instance_count: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """(K,) weight of each class among those of its group; no object counts as one."""
    inverse = 1 / instance_count.clamp(min=1).double()
    zeros = torch.zeros(num_groups, dtype=torch.float64)
    total = zeros.scatter_add(0, group, inverse)
    mean = total / torch.bincount(group, minlength=num_groups).clamp(min=1)
    return (inverse / mean[group]).clamp(MIN_CLASS_WEIGHT, MAX_CLASS_WEIGHT)


def _to_bytes(text: str) -> Tensor:
    """Text for a checkpoint, of a fixed size: loaders skip a tensor of another shape unread."""
    return torch.tensor(list(text.encode().ljust(LAYOUT_BYTES)[:LAYOUT_BYTES]), dtype=torch.uint8)


def _to_text(layout: Tensor) -> str:
    return bytes(layout.cpu().flatten().tolist()).decode(errors="replace").strip()
