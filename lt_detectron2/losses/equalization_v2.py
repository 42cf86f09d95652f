"""Equalization loss v2, "EQL v2" (CVPR 2021, https://arxiv.org/abs/2012.08548)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import TermWeights
from .base import check_non_negative, check_probability
from .cross_entropy import SigmoidCrossEntropyLoss, prior_bias

FORMULATIONS = ("sigmoid", "softmax_2c")
INITIAL_RATIO = 100.0
"""Gradient ratio of a class before the first step; large, so that nothing is re-weighted yet."""


class EqualizationLossV2(SigmoidCrossEntropyLoss):
    """
    Balances, for every class, the gradients it has received as a positive and as a negative.

    K classes and one background column, each a binary task. With g_j the ratio of accumulated
    positive to negative gradient of class j (Eq. 5 and 9),

        r_j = f(g_j)                      weight of the negatives                        (Eq. 6)
        q_j = 1 + alpha (1 - f(g_j))      weight of the positives                        (Eq. 6)
        f(x) = 1 / (1 + exp(-gamma (x - mu)))                                            (Eq. 7)

    The background task is not re-weighted: r = q = 1. Weights of a step come from the state before
    it; the state then grows by the *weighted* gradients |sigmoid(z) - y| w, summed over regions
    and processes. Sums replace the paper's means over regions, as in the official code.

    At test time ``score_j = p_j (1 - p_background)``: the paper's objectness branch, carried as a
    background logit like the official code does.

    Args:
        gamma: steepness of f.
        mu: ratio at which f is one half.
        alpha: strength of the positives' weight; 0 leaves positives alone.
        objectness: multiply class scores by 1 - p_background at test time. False scores a class by
            its own sigmoid alone.
        formulation: "sigmoid" (C-sigmoid) or "softmax_2c" (a softmax over two logits a task, Table
            9). The latter has no official code; it is the sigmoid of the difference of the two.
            Its logits are K+1 positive ones, then K+1 negative ones.
        reweight_positive, reweight_negative: switch off q or r (rows of Table 2).
        prior_probability: probability that every class starts with.
        background_probability: probability that the background task starts with. The official
            0.001 costs each background region log 1000 at first, which a long training forgets; a
            short one from scratch does better with the neutral 0.5.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        objectness: bool = True,
        formulation: str = "sigmoid",
        reweight_positive: bool = True,
        reweight_negative: bool = True,
        prior_probability: float = 0.001,
        background_probability: float = 0.001,
    ):
        super().__init__(num_classes, prior_probability=prior_probability)
        if formulation not in FORMULATIONS:
            raise ValueError(f"formulation must be one of {FORMULATIONS}, got {formulation!r}")
        self.background_probability = check_probability(
            "background_probability", background_probability
        )
        self.gamma = check_non_negative("gamma", gamma)
        self.mu = check_non_negative("mu", mu)
        self.alpha = check_non_negative("alpha", alpha)
        self.objectness = objectness
        self.formulation = formulation
        self.reweight_positive = reweight_positive
        self.reweight_negative = reweight_negative
        zeros = torch.zeros(num_classes, dtype=torch.float64)
        self.register_buffer("positive_gradient", zeros)  # (K,)
        self.register_buffer("negative_gradient", zeros.clone())  # (K,)

    @property
    def num_logits(self) -> int:
        tasks = self.num_classes + 1
        return 2 * tasks if self.formulation == "softmax_2c" else tasks

    @property
    def gradient_ratio(self) -> Tensor:
        """(K,) float64 accumulated positive over negative gradient; 100 before the first step."""
        ratio = self.positive_gradient / (self.negative_gradient + 1e-10)
        started = self.negative_gradient.any() | self.positive_gradient.any()
        return torch.where(started, ratio, INITIAL_RATIO)

    def region_losses(self, logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        result = self.cross_entropy(
            self._task_logits(logits), targets, reduction, class_gradients=self.is_accumulating
        )
        if self.is_accumulating:
            self.accumulate(
                positive_gradient=result.positive_gradient[:-1],
                negative_gradient=result.negative_gradient[:-1],
            )
        return result.loss

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights:
        mapped = torch.sigmoid(self.gamma * (self.gradient_ratio - self.mu))
        ones = torch.ones_like(mapped)
        negative = mapped if self.reweight_negative else ones
        positive = 1 + self.alpha * (1 - mapped) if self.reweight_positive else ones
        return TermWeights(F.pad(positive, (0, 1), value=1.0), F.pad(negative, (0, 1), value=1.0))

    def activation(self, logits: Tensor) -> Tensor:
        probabilities = self._task_logits(logits).sigmoid()
        classes, background = probabilities[:, :-1], probabilities[:, -1:]
        if self.objectness:
            classes = classes * (1 - background)
        return torch.cat([classes, background], dim=1)

    def class_logits(self, logits: Tensor) -> Tensor:
        return super().class_logits(self._task_logits(logits))

    def class_state(self) -> dict[str, Tensor]:
        return {"gradient_ratio": self.gradient_ratio}

    def init_classifier(self, classifier: nn.Linear) -> None:
        bias = classifier.bias.new_full((self.num_classes + 1,), prior_bias(self.prior_probability))
        bias[-1] = prior_bias(self.background_probability)
        if self.formulation == "softmax_2c":  # the difference of the two is the task's logit
            bias = torch.cat([bias / 2, -bias / 2])
        with torch.no_grad():
            classifier.bias.copy_(bias)

    def _task_logits(self, logits: Tensor) -> Tensor:
        if self.formulation == "sigmoid":
            return logits
        positive, negative = logits.chunk(2, dim=1)
        return positive - negative
