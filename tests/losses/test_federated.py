"""Federated loss: which classes are kept, and the loss over them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lt_detectron2.losses import FederatedLoss, SigmoidCrossEntropyLoss
from lt_detectron2.ops import one_pass
from lt_detectron2.statistics import ClassStatistics
from tests.golden import load_golden
from tests.parity import compare

from .factory import (
    STATISTICS,
    K,
    batch,
    golden_batch,
    golden_statistics,
    golden_steps,
    value_and_gradient,
)

METHOD = "FederatedLoss"


def kept(loss: FederatedLoss, targets: Tensor) -> list[int]:
    return loss.sampled_classes(targets).nonzero().flatten().tolist()


def drawing(loss: FederatedLoss, *drawn: int) -> FederatedLoss:
    """Let the next draws be these classes, in this order; the others come after them."""
    draws = torch.full((loss.num_classes,), 1e-30)
    for place, c in enumerate(drawn):
        draws[c] = 1 - 1e-6 * (place + 1)
    loss.uniform = lambda shape: draws
    return loss


def test_value_by_hand():
    # Zero logits, each term log 2. Targets 0 and background, class 2 drawn: terms of 0 and 2.
    statistics = ClassStatistics([9, 9, 9, 9], [1, 4, 4, 4], num_images=9)
    loss = drawing(FederatedLoss(4, statistics, num_sampled_classes=3), 2, 3)
    targets = torch.tensor([0, 4, 4])
    assert kept(loss, targets) == [0, 2]  # the background takes the third place
    assert_close(loss(torch.zeros(3, 4), targets), torch.tensor(2 * math.log(2)))
    assert kept(loss, targets[:1]) == [0, 2, 3]


def test_no_class_at_all():
    loss = FederatedLoss(K, STATISTICS, num_sampled_classes=1)
    logits = torch.zeros(2, K, requires_grad=True)
    value = loss(logits, torch.full((2,), K))  # the background takes the only place
    value.backward()
    assert value == 0 and not logits.grad.any()


def test_columns_chosen_or_weighted_are_the_same(monkeypatch: pytest.MonkeyPatch):
    loss = FederatedLoss(K, STATISTICS, num_sampled_classes=4)
    loss.uniform = lambda shape: torch.linspace(0.1, 0.9, K)
    logits, targets = batch(loss)
    chosen = value_and_gradient(loss, logits, targets)
    monkeypatch.setattr(one_pass, "looking_is_free", lambda tensor: False)
    assert_close(value_and_gradient(loss, logits, targets), chosen)


def test_enough_places_is_sigmoid_cross_entropy():
    loss = FederatedLoss(K, STATISTICS, num_sampled_classes=K + 1)
    logits, targets = batch(loss)
    assert_close(loss(logits, targets), SigmoidCrossEntropyLoss(K)(logits, targets))


def test_targets_are_kept_where_places_do_not_suffice():
    loss = FederatedLoss(K, STATISTICS, num_sampled_classes=2)
    targets = torch.tensor([3, 1, 7, K, 3])
    assert kept(loss, targets) == [1, 3, 7]
    logits = torch.randn(5, K, dtype=torch.float64)
    total = sum(
        F.binary_cross_entropy_with_logits(z[j], torch.tensor(float(j == t), dtype=z.dtype))
        for z, t in zip(logits, targets)
        for j in (1, 3, 7)
    )
    assert_close(loss(logits, targets), total / 5)


def test_class_in_no_image_is_never_drawn():
    statistics = ClassStatistics([5, 0, 5], [2, 0, 2], num_images=4)
    loss = FederatedLoss(3, statistics, num_sampled_classes=3, frequency_power=0.0)
    for _ in range(20):
        assert kept(loss, torch.tensor([0])) == [0, 2]
    assert kept(loss, torch.tensor([1])) == [0, 1, 2]  # unless it is there


def test_numbers_drawn_are_zero():
    loss = FederatedLoss(K, STATISTICS, num_sampled_classes=4)
    loss.uniform = torch.zeros
    assert kept(loss, torch.tensor([5])).count(5) == 1
    assert torch.isfinite(loss(*batch(loss)))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_first_draw_follows_the_frequencies(power: float):
    statistics = ClassStatistics([50, 50, 50], [1, 9, 25], num_images=30)
    loss = FederatedLoss(3, statistics, num_sampled_classes=2, frequency_power=power)
    counts = np.zeros(3)
    for _ in range(2000):
        counts[kept(loss, torch.tensor([3]))] += 1  # the background takes the other place
    expected = np.array([1, 9, 25]) ** power
    assert np.abs(counts / 2000 - expected / expected.sum()).max() < 0.05


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_sampled_classes", 0, "num_sampled_classes must be at least 1, got 0: "),
        ("frequency_power", -0.5, "frequency_power must be a finite number >= 0, got -0.5"),
    ],
)
def test_wrong_arguments_are_refused(name: str, value: float, message: str):
    with pytest.raises(ValueError, match=message):
        FederatedLoss(K, STATISTICS, **{name: value})


def test_golden_sequence():
    golden = load_golden("federated")
    loss = FederatedLoss(
        40,
        golden_statistics(golden),
        num_sampled_classes=int(golden["num_sample"]),
        frequency_power=float(golden["power"]),
    )
    compare(METHOD, "federated/weight", loss.sampling_weight, golden["weight"])
    for step in golden_steps(golden, "seq"):
        logits, targets = golden_batch(golden, step)
        logits = logits[:, :40]  # the recorded last column has no term
        drawing(loss, *golden[f"{step}/drawn"].tolist())
        value, gradient = value_and_gradient(loss, logits, targets)
        has_background = [40] if (targets == 40).any() else []
        classes = kept(loss, targets)
        chances = F.pad(loss.sampling_weight, (0, 1))
        chances[targets] = 0
        for key, actual in (
            ("loss", value),
            ("grad", F.pad(gradient, (0, 1))),
            ("drawn", _in_order(golden[f"{step}/drawn"], set(classes) - set(targets.tolist()))),
            ("kept_classes_incl_bg", classes + has_background),
            ("prob", chances),
        ):
            if key == "prob" and not golden[f"{step}/prob"].size:
                continue  # nothing was drawn
            compare(METHOD, f"federated/{step}/{key}", actual, golden[f"{step}/{key}"])


def _in_order(order: np.ndarray, items: set[int]) -> np.ndarray:
    """The items, those in ``order`` first and in its order."""
    return np.array(sorted(items, key=[*order.tolist(), *items].index), dtype=np.int64)


def test_golden_scores():
    golden = load_golden("federated")
    logits = torch.from_numpy(golden["infer/logits_q"]).double() / 64
    scores = FederatedLoss(40, golden_statistics(golden)).scores(logits[:, :40])
    # The recorded background score is the sigmoid of the column that has no term.
    compare(METHOD, "federated/infer/scores", scores[:, :40], golden["infer/scores"][:, :40])


def test_golden_inclusion_frequencies():
    golden = load_golden("federated")
    statistics = golden_statistics(golden)
    loss = FederatedLoss(40, statistics, num_sampled_classes=int(golden["num_sample"]))
    targets = torch.from_numpy(golden["stat/labels"])
    draws, counts = 3000, np.zeros(41)
    counts[40] = draws * (targets == 40).any()
    for _ in range(draws):
        counts[kept(loss, targets)] += 1
    # Five standard deviations of a share measured in 3000 draws, compared with 20000 recorded.
    assert np.abs(counts / draws - golden["stat/inclusion_freq_20000"]).max() < 0.05
