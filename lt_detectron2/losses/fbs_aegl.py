"""
Foreground and background separate adaptive equilibrium gradients loss, "FBS-AEGL" (CVM 2024,
https://doi.org/10.1007/978-981-97-2092-7_10). No code was released.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import TermWeights
from ..ops.sigmoid_ce import SIGMOID, BinaryTerms
from ..statistics import ClassStatistics
from .cross_entropy import SigmoidCrossEntropyLoss
from .drop import tail_share
from .equalization import tail_classes
from .gumbel import GumbelTerms, gumbel, init_gumbel_classifier
from .sampling import DrawnRows

ACTIVATIONS = ("sigmoid", "gumbel")
BACKGROUND_GATES = ("all", "low", "off")
KEEP_RULES = ("share", "literal", "always")


class FBSAEGLoss(SigmoidCrossEntropyLoss):
    """
    Lets a negative count only where the class is believed, and less of the background's for the
    tail; scales classes by how many objects they have.

        loss_i = sum_j w_ij BCE(z_ij, y_ij)                                              (Eq. 4)
        w_ij = wf_j max(y_ij, [p_ij >= mu])       foreground region                      (Eq. 8)
        w_ij = wf_j b_ij [p_ij >= mu]             background region                      (Eq. 9)
        b_ij = [u_ij < sigma] for a rare or common class, u_ij ~ U[0, 1); else 1        (Eq. 10)
        wf_j = (1 - gamma) / (1 - gamma^N_j)

    N_j are the objects of class j in the training set, without repeats; sigma is the share of rare
    and common classes among the foreground regions of this step, 1 if there is none. Weights are
    held constant. With the defaults wf is 0.3 for every class with more than about 20 objects, and
    no background region has a gradient where p < mu: scores below mu mean little.

    Where the paper contradicts itself or is silent:

    * Eq. 7 prints the gradient of the target's term as w p - 1. The derivative of Eq. 4 is
      w (p - 1), which is used; the printed one would push the logit up for ever if w < 1.
    * Fig. 3 prints the weights 0.59, 1.78, 1.78 for 2, 5 and 5 objects. The formula gives 0.588,
      0.361, 0.361; 1.78 is 0.3 / 0.7^5, the "1 -" forgotten. So gamma is 0.7, the factor is not
      normalised, and the class with fewer objects weighs more.
    * "Ber(sigma) < sigma" read literally keeps a term with probability 1 - sigma. It is kept with
      probability sigma here, like in DropLoss, from which the rule comes.
    * The second sigma, for frequent classes, is never used by Eq. 10.
    * The gate p >= mu of Eq. 9 holds for frequent classes, too: the example in Fig. 3 needs it.
    * "FGw only" and "BGw only" (Table 1) leave the other kind of region with weight 1; "w/o WF"
      (Table 4) removes the factor from both.
    * One draw for each region and class; sigma of each process for itself; mean over all regions;
      no background logit; prior probability 0.001: as in DropLoss, from which the paper builds.
    * With GOL (Table 5), the Gumbel activation and its initialisation replace the sigmoid, mu is
      compared with the Gumbel probability, and DropLoss's weights are not used.

    Args:
        statistics: counts of the training set: instance counts for wf, image counts for the groups.
        gamma: base of the weighting factor; 0 makes it 1.
        mu: probability from which on a negative counts; 0 lets all count (Table 2).
        foreground_weight: False weighs the terms of foreground regions 1 (Table 1).
        background_weight: False weighs the terms of background regions 1 (Table 1).
        weighting_factor: False is wf = 1 (Table 4).
        normalize_factor: divide wf by its mean over the classes.
        activation: "sigmoid" or "gumbel" (Table 5).
        background_gate: classes to which p >= mu applies on background regions: "all", "low" (rare
            and common) or "off".
        keep_rule: "share" keeps a term with probability sigma, "literal" with 1 - sigma, as
            printed, "always" never drops one.
        sync_sigma: count sigma over all processes.
        frequency_threshold: see EqualizationLoss; None means rare and common.
        prior_probability: of the sigmoid; the Gumbel activation starts as in GumbelLoss.
    """

    def __init__(
        self,
        num_classes: int,
        statistics: ClassStatistics,
        *,
        gamma: float = 0.7,
        mu: float = 0.7,
        foreground_weight: bool = True,
        background_weight: bool = True,
        weighting_factor: bool = True,
        normalize_factor: bool = False,
        activation: str = "sigmoid",
        background_gate: str = "all",
        keep_rule: str = "share",
        sync_sigma: bool = False,
        frequency_threshold: float | None = None,
        prior_probability: float = 0.001,
    ):
        super().__init__(num_classes, prior_probability=prior_probability)
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must be at least 0 and below 1, got {gamma}")
        if not 0 <= mu <= 1:
            raise ValueError(f"mu must lie in 0..1, got {mu}")
        for name, value, choices in (
            ("activation", activation, ACTIVATIONS),
            ("background_gate", background_gate, BACKGROUND_GATES),
            ("keep_rule", keep_rule, KEEP_RULES),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        self.gamma = float(gamma)
        self.mu = float(mu)
        self.foreground_weight = foreground_weight
        self.background_weight = background_weight
        self.weighting_factor = weighting_factor
        self.normalize_factor = normalize_factor
        self.activation_name = activation
        self.background_gate = background_gate
        self.keep_rule = keep_rule
        self.sync_sigma = sync_sigma
        is_low = tail_classes(statistics, num_classes, frequency_threshold)
        self.register_buffer("is_low", is_low, persistent=False)  # (K,) bool
        factor = self._weighting_factor(statistics.instance_count)
        self.register_buffer("class_factor", factor, persistent=False)  # (K,)
        gate = {
            "all": torch.ones(num_classes),
            "low": is_low.float(),
            "off": torch.zeros(num_classes),
        }
        is_weighted = torch.tensor([[background_weight], [foreground_weight]])
        negative = torch.where(is_weighted, factor, 1.0)
        min_score = self.mu * torch.stack([gate[background_gate], torch.ones(num_classes)])
        self.register_buffer("negative_weight", negative, persistent=False)  # (2, K)
        self.register_buffer("min_score", min_score * is_weighted, persistent=False)  # (2, K)

    @property
    def terms(self) -> BinaryTerms:
        return SIGMOID if self.activation_name == "sigmoid" else GumbelTerms(floored=False)

    def term_weights(self, logits: Tensor, targets: Tensor) -> TermWeights:
        weights = TermWeights(
            positive=self.negative_weight[1],
            negative=self.negative_weight,
            min_score=self.min_score,
        )
        if not self.background_weight or self.keep_rule == "always":
            return weights
        rows = DrawnRows.of(targets == self.num_classes)
        keeps = self._keep(self.uniform(logits.shape, rows.drawn), targets)
        return weights._replace(mask=rows.spare_others(keeps), mask_row=rows.place)

    def activation(self, logits: Tensor) -> Tensor:
        scores = logits.sigmoid() if self.activation_name == "sigmoid" else gumbel(logits)
        return F.pad(scores, (0, 1))

    def init_classifier(self, classifier: nn.Linear) -> None:
        if self.activation_name == "sigmoid":
            super().init_classifier(classifier)
        else:
            init_gumbel_classifier(classifier)

    def _weighting_factor(self, instance_count: Tensor) -> Tensor:
        """(K,) float64 wf; a class without objects counts as one with one."""
        count = instance_count.clamp(min=1).double()
        gamma = self.gamma if self.weighting_factor else 0.0
        factor = (1 - gamma) / (1 - gamma**count)
        return factor / factor.mean() if self.normalize_factor else factor

    def _keep(self, draws: Tensor, targets: Tensor) -> Tensor:
        """b_ij in place of the draws."""
        over_processes = self.sync_sigma and self.is_accumulating
        sigma = tail_share(targets, self.is_low, over_processes=over_processes).float()
        if self.keep_rule == "share":
            return draws.lt_(torch.where(self.is_low, sigma, 1.0))
        return draws.ge_(torch.where(self.is_low, torch.where(sigma > 0, sigma, 1.0), 0.0))
