"""
Builds every exported loss in one way, so that one suite can test them all.

Also what the tests of single losses share: a long-tailed set of class counts, batches of the kinds
that training meets, and the gradient of a loss.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lt_detectron2 import losses
from lt_detectron2.losses import SigmoidCrossEntropyLoss
from lt_detectron2.losses.base import ClassificationLoss
from lt_detectron2.statistics import ClassStatistics
from tests.ops import cross_entropy_reference as reference

# No two classes are alike and none is in order: a method that mixes classes up is noticed. Every
# LVIS group and every group of BAGS has members; class 10 lies on an edge of both.
STATISTICS = ClassStatistics(
    instance_count=[1200, 3, 45, 150, 9, 500, 1, 2500, 20, 80, 12, 1000],
    image_count=[600, 2, 30, 101, 8, 300, 1, 900, 11, 60, 10, 400],
    num_images=2000,
)
K = STATISTICS.num_classes
RANDOM_METHODS = ("uniform", "sampling_mask")
needs_new_compiler = pytest.mark.skipif(
    torch.__version__ < (2, 6), reason="torch.compile of old versions knows less of Python"
)

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "BalancedSoftmaxLoss": ({"tau": 0.5},),
    "DropLoss": tuple({"background_rule": rule} for rule in ("drop_all", "equalize", "keep")),
    "EffectiveClassMarginLoss": ({"official_fp32_weights": True},),
    "EqualizationLossV2": ({"formulation": "softmax_2c"}, {"objectness": False}),
    "EqualizedFocalLoss": ({"quality": True}, {"normalizer": "regions"}),
    "FBSAEGLoss": (
        {"activation": "gumbel"},
        {"background_gate": "low", "keep_rule": "literal", "normalize_factor": True},
        {"background_gate": "off"},
        {"foreground_weight": False, "background_weight": False, "weighting_factor": False},
        {"keep_rule": "always"},
        {"sync_sigma": True},
    ),
    "FocalLoss": (
        {"normalizer": "entries", "background_column": True},
        {"normalizer": "regions", "alpha": None, "gamma": 0.5},
    ),
    "GroupSoftmaxLoss": ({"in_group_reweighting": True}, {"edges": (50,), "beta": 1.0}),
    "GumbelLoss": (
        {"weighting": "none", "background_column": True},
        {"weighting": "equalization", "official_gradient": False},
        {"official_gradient": False},
    ),
    "LDAMLoss": ({"reweight_from_step": 1, "scale": 1.0},),
    "ReweightedSoftmaxLoss": (
        {"effective_number_beta": 0.999, "clip": None, "background_weight": None},
    ),
    "SeesawLoss": ({"objectness": False}, {"q": 0.0}),
    "SoftmaxEqualizationLossV2": (
        {"formulation": "share", "indicator": "negative"},
        {"tau": 0.5},
    ),
}
"""Settings other than the default for which the contract is tested as well, by class."""

BATCH_KINDS: dict[str, Callable[[int], list[int]]] = {
    "mixed": lambda regions: [i % K if i % 3 == 0 else K for i in range(regions)],
    "foreground": lambda regions: [i % K for i in range(regions)],
    "background": lambda regions: [K] * regions,
    "one positive": lambda regions: [6] + [K] * (regions - 1),  # class 6 has one object
}


def loss_classes() -> list[type[ClassificationLoss]]:
    """All exported losses; one that is added to ``__all__`` is tested without further work."""
    exported = [getattr(losses, name) for name in losses.__all__]
    return [
        item for item in exported if inspect.isclass(item) and issubclass(item, ClassificationLoss)
    ]


def cases() -> dict[str, Callable[..., ClassificationLoss]]:
    """What builds each loss: with its defaults, and with each of its variants."""
    builders = {}
    for loss_class in loss_classes():
        for switches in ({}, *VARIANTS.get(loss_class.__name__, ())):
            label = ", ".join(f"{name}={value}" for name, value in switches.items())
            name = f"{loss_class.__name__}({label})" if label else loss_class.__name__
            builders[name] = functools.partial(build, loss_class, **switches)
    return builders


def needs_statistics(loss_class: type[ClassificationLoss]) -> bool:
    """Whether the constructor wants class statistics."""
    return "statistics" in inspect.signature(loss_class).parameters


def build(
    loss_class: type[ClassificationLoss],
    statistics: ClassStatistics = STATISTICS,
    draw: Callable[[torch.Size], Tensor] | None = None,
    replay: bool = True,
    **hyper_parameters: Any,
) -> ClassificationLoss:
    """
    Construct a loss for the classes of ``statistics``, in training mode.

    Args:
        draw: what ``uniform`` returns for a shape, if not random numbers.
        replay: let random methods draw the same numbers in each call, so that each loss is a
            function of its inputs and its state.
    """
    wired = (statistics,) if needs_statistics(loss_class) else ()
    loss = loss_class(statistics.num_classes, *wired, **hyper_parameters)
    for name in RANDOM_METHODS:
        if replay and hasattr(loss, name):
            setattr(loss, name, _repeated(getattr(loss, name)))
    if draw is not None:
        loss.uniform = draw
    return loss


def replay_of(draws: Tensor) -> Callable[..., Tensor]:
    """A method ``uniform`` that returns recorded numbers, or those of some rows."""
    return lambda shape, rows=None: draws.clone() if rows is None else draws[rows]


def _repeated(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def same_draw(*args: Any) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return draw(*args)

    return same_draw


def batch(
    loss: ClassificationLoss,
    regions: int = 24,
    kind: str = "mixed",
    *,
    seed: int = 0,
    std: float = 2.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Logits (R, L) that want a gradient, and targets (R,) of the kind asked for."""
    generator = torch.Generator().manual_seed(seed)
    logits = std * torch.randn(regions, loss.num_logits, generator=generator, dtype=torch.float64)
    targets = torch.tensor(BATCH_KINDS[kind](regions)[:regions], dtype=torch.int64)
    targets = targets[torch.randperm(regions, generator=generator)]
    return logits.to(dtype).requires_grad_(), targets


def value_and_gradient(
    loss: ClassificationLoss, logits: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Value of a loss and its gradient with respect to the logits, both without a graph."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, targets)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def dense_weights(loss: SigmoidCrossEntropyLoss, logits: Tensor, targets: Tensor) -> Tensor:
    """(R, L) weights of all terms, which the loss tells by tables."""
    scores = loss.terms.negative(logits.detach())[0]
    tables = loss.term_weights(logits, targets)
    return reference.dense_weights(tables, scores, targets, loss.num_classes)


def train(loss: ClassificationLoss, steps: int = 2, first_seed: int = 100) -> ClassificationLoss:
    """Let a loss see batches, so that its state is no longer the initial one."""
    for step in range(steps):
        loss(*batch(loss, seed=first_seed + step)).backward()
    return loss


def state_of(loss: ClassificationLoss) -> dict[str, Tensor]:
    """Copies of all buffers, also of those that are not saved."""
    return {name: buffer.clone() for name, buffer in loss.named_buffers()}


def golden_batch(golden: Mapping[str, np.ndarray], prefix: str) -> tuple[Tensor, Tensor]:
    """Float64 logits, stored as multiples of 1/64, and targets of a recorded step."""
    logits = torch.from_numpy(golden[f"{prefix}/logits_q"]).double() / 64
    return logits, torch.from_numpy(golden[f"{prefix}/labels"])


def golden_statistics(golden: Mapping[str, np.ndarray], num_images: int = 20000) -> ClassStatistics:
    """The class counts that a golden file was recorded with."""
    return ClassStatistics(golden["instance_count"], golden["image_count"], num_images)


def golden_steps(golden: Mapping[str, np.ndarray], case: str) -> list[str]:
    """Names "case/s0", "case/s1", ... of the consecutive steps of one recorded object."""
    present = {"/".join(key.split("/")[:2]) for key in golden if key.startswith(f"{case}/s")}
    return sorted(present)


def without_background(logits: Tensor) -> Tensor:
    """
    Append a background logit that never counts.

    For arrays recorded from image classifiers, which have no background: exp(-1e4) is 0, so that
    losses and gradients are those of the softmax over the classes alone.
    """
    return torch.nn.functional.pad(logits.double(), (0, 1), value=-1e4)
