"""GOL: the Gumbel activation, its official and its exact gradient, and its weightings."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lt_detectron2.losses import DropLoss, EqualizationLoss, GumbelLoss
from lt_detectron2.losses.base import ClassificationLoss
from lt_detectron2.statistics import ClassStatistics
from tests.golden import load_golden
from tests.parity import compare

from .factory import STATISTICS, K, batch, replay_of, value_and_gradient

METHOD = "GumbelLoss"


def test_value_by_hand():
    # z = 0 has the probability 1/e: 1 for the target, -log(1 - 1/e) for the other two classes and
    # for all three of a background region.
    loss = GumbelLoss(3, ClassStatistics([5, 5, 5], [5, 5, 5], 9), weighting="none")
    negative = -math.log(1 - math.exp(-1))
    value = loss(torch.zeros(2, 3), torch.tensor([1, 3]))
    assert_close(value.item(), (1 + 5 * negative) / 2)
    assert_close(loss.scores(torch.zeros(1, 3))[0].tolist(), 3 * [math.exp(-1)] + [0.0])


@pytest.mark.parametrize("weighting", ["drop", "equalization"])
def test_no_threshold_is_the_activation_alone(weighting: str):
    plain = GumbelLoss(K, STATISTICS, weighting="none")
    loss = GumbelLoss(K, STATISTICS, weighting=weighting, frequency_threshold=0.0)
    logits, targets = batch(loss)
    assert_close(loss(logits, targets), plain(logits, targets))


@pytest.mark.parametrize("weighting", ["none", "drop", "equalization"])
@pytest.mark.parametrize("official", [True, False])
def test_equals_slow_reference(weighting: str, official: bool):
    loss = GumbelLoss(K, STATISTICS, weighting=weighting, official_gradient=official)
    draws = torch.rand(24, K)
    loss.uniform = replay_of(draws)
    logits, targets = batch(loss, std=6.0)
    is_tail = [int(images) <= 100 for images in STATISTICS.image_count]
    foreground = [t for t in targets.tolist() if t < K]
    rho = sum(is_tail[t] for t in foreground) / len(foreground)
    total = 0.0
    for i, t in enumerate(targets.tolist()):
        for j in range(K):
            e = math.exp(-min(max(logits[i, j].item(), -4.0), 10.0))
            if j == t:
                total += e
                continue
            spared = is_tail[j] and (
                (t < K and weighting != "none")
                or (t == K and weighting == "drop" and draws[i, j] > rho)
            )
            total -= 0 if spared else math.log1p(-math.exp(-e))
    assert_close(loss(logits, targets).item(), total / len(targets))


def test_gradients_differ_for_positives_far_down_only():
    logits = torch.tensor([[-3.9], [-3.5], [-3.3], [0.0], [9.0], [10.1], [-4.1]]).double()
    targets = torch.zeros(len(logits), dtype=torch.int64)
    statistics = ClassStatistics([5], [5], 9)
    _, exact = value_and_gradient(
        GumbelLoss(1, statistics, official_gradient=False), logits, targets
    )
    _, official = value_and_gradient(GumbelLoss(1, statistics), logits, targets)
    inside = (logits >= -4) & (logits <= 10)
    assert_close(exact, torch.where(inside, -torch.exp(-logits), 0.0) / len(logits))
    assert_close(official[2:], exact[2:])
    p = torch.exp(-torch.exp(-logits[:2]))
    assert_close(official[:2], exact[:2] * p / 1e-12, rtol=1e-6, atol=0)


def test_ceiling_stops_the_gradient():
    loss = GumbelLoss(K, STATISTICS, weighting="none", background_column=True, loss_ceiling=3.0)
    logits, targets = batch(loss)
    value, gradient = value_and_gradient(loss, logits, targets)
    assert value == 3 and not gradient.any()


def test_initial_probability():
    classifier = nn.Linear(4, K)
    loss = GumbelLoss(K, STATISTICS)
    loss.init_classifier(classifier)
    assert_close(loss.scores(classifier(torch.zeros(1, 4)))[0, 0].item(), math.exp(-math.exp(2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weighting": "focal"}, "weighting must be one of .*, got 'focal'"),
        ({"background_column": True}, 'set weighting="none" or drop the column'),
        ({"loss_ceiling": 0.0}, "loss_ceiling must be a number above 0 or None, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GumbelLoss(K, STATISTICS, **arguments)


def _statistics(golden: Mapping[str, np.ndarray]) -> ClassStatistics:
    """Counts with the recorded image frequencies, to eight digits."""
    num_images = 10**8
    image_count = np.rint(golden["small_icf"] * num_images).astype(np.int64)
    return ClassStatistics(image_count, image_count, num_images)


def _steps(golden: Mapping[str, np.ndarray]) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """Number, logits (64, 41), targets (64,) and draws (64, 40) of each recorded step."""
    parts = (golden["small_logits"], golden["small_labels"], golden["small_U"])
    return list(enumerate(zip(*(torch.from_numpy(part) for part in parts))))


@pytest.mark.parametrize("name", ["drop_gumbel", "eql_gumbel", "drop_sigmoid", "eql_sigmoid"])
def test_golden(name: str):
    golden = load_golden("gol")
    threshold = {"frequency_threshold": float(golden["lambda_"])}
    wired = (40, _statistics(golden))
    losses: dict[str, ClassificationLoss] = {
        "drop_gumbel": GumbelLoss(*wired, weighting="drop", **threshold),
        "eql_gumbel": GumbelLoss(*wired, weighting="equalization", **threshold),
        "drop_sigmoid": DropLoss(*wired, **threshold),
        "eql_sigmoid": EqualizationLoss(*wired, **threshold),
    }
    loss = losses[name]
    method = type(loss).__name__
    activation = name.split("_")[1]
    for step, (logits, targets, draws) in _steps(golden):
        loss.uniform = replay_of(draws)
        value, gradient = value_and_gradient(loss, logits[:, :40], targets)
        for key, actual in (("loss", value), ("grad", gradient)):
            expected = golden[f"small_{name}_{key}"][step]
            compare(method, f"gol/small_{name}_{key}/{step}", actual, expected)
        scores = loss.scores(logits[:, :40])
        expected = golden[f"small_{activation}_infer"][step]
        compare(method, f"gol/small_{activation}_infer/{step}", scores, expected)


def test_golden_gumbel_cross_entropy():
    golden = load_golden("gol")
    loss = GumbelLoss(
        40, _statistics(golden), weighting="none", background_column=True, loss_ceiling=20.0
    )
    for step, (logits, targets, _) in _steps(golden):
        value, gradient = value_and_gradient(loss, logits, targets)
        outputs = {"loss": value, "grad": gradient, "infer": loss.scores(logits)}
        for key, actual in outputs.items():
            expected = golden[f"small_gumbelce_{key}"][step]
            compare(METHOD, f"gol/small_gumbelce_{key}/{step}", actual, expected)
