"""DropLoss and its rules for background regions."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lt_detectron2.losses import DropLoss, EqualizationLoss, SigmoidCrossEntropyLoss
from lt_detectron2.losses.drop import tail_share
from lt_detectron2.ops import one_pass
from lt_detectron2.statistics import ClassStatistics
from tests.golden import load_golden
from tests.parity import compare

from .factory import (
    BATCH_KINDS,
    STATISTICS,
    K,
    batch,
    dense_weights,
    golden_batch,
    golden_statistics,
    golden_steps,
    replay_of,
    value_and_gradient,
)

METHOD = "DropLoss"
TWO_CLASSES = ClassStatistics(instance_count=[2, 900], image_count=[1, 500], num_images=1000)


@pytest.mark.parametrize(("draw", "kept"), [(0.4, True), (0.6, False)])
def test_value_by_hand(draw: float, kept: bool):
    # Zero logits: every term is log 2. Class 0 is the tail. One foreground region of two is in the
    # tail, so rho is 1/2. The region of class 1 loses the term of class 0, the background region
    # keeps it where the draw is at most 1/2.
    loss = DropLoss(2, TWO_CLASSES)
    loss.uniform = lambda shape, rows: torch.full((len(rows), *shape[1:]), draw)
    value = loss(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
    assert_close(value.item(), (2 + 1 + 1 + kept) / 3 * math.log(2))


def test_no_threshold_is_sigmoid_cross_entropy():
    loss = DropLoss(K, STATISTICS, frequency_threshold=0.0)
    logits, targets = batch(loss)
    assert_close(loss(logits, targets), SigmoidCrossEntropyLoss(K)(logits, targets))


def test_rule_keep_is_eql():
    loss, eql = DropLoss(K, STATISTICS, background_rule="keep"), EqualizationLoss(K, STATISTICS)
    logits, targets = batch(loss)
    assert_close(loss(logits, targets), eql(logits, targets))


@pytest.mark.parametrize("rule", ["drop", "drop_all", "equalize", "keep"])
@pytest.mark.parametrize("kind", BATCH_KINDS)
def test_equals_slow_reference(rule: str, kind: str):
    loss = DropLoss(K, STATISTICS, background_rule=rule, background_base=5.0)
    draws = torch.rand(24, K)
    loss.uniform = replay_of(draws)
    logits, targets = batch(loss, kind=kind)
    is_tail = [int(images) <= 100 for images in STATISTICS.image_count]
    foreground = [t for t in targets.tolist() if t < K]
    rho = sum(is_tail[t] for t in foreground) / len(foreground) if foreground else None
    total = 0.0
    for i, t in enumerate(targets.tolist()):
        for j in range(K):
            p = logits[i, j].sigmoid().item()
            if t == j:
                total -= math.log(p)
                continue
            weight = 1.0
            if t < K:
                weight = 1.0 - is_tail[j]
            elif rule == "equalize" and is_tail[j]:
                weight = 1 - min(-math.log(p, 5.0), 1)
            elif rule.startswith("drop") and rho is not None:
                if is_tail[j]:
                    weight = float(draws[i, j] <= rho)
                elif rule == "drop_all":
                    weight = float(draws[i, j] <= 1 - rho)
            total -= weight * math.log(1 - p)
    assert_close(loss(logits, targets).item(), total / len(targets))


def test_all_background_drops_nothing():
    loss = DropLoss(K, STATISTICS)
    logits, targets = batch(loss, kind="background")
    assert_close(loss(logits, targets), SigmoidCrossEntropyLoss(K)(logits, targets))


def test_unknown_rule_and_impossible_base_are_refused():
    with pytest.raises(ValueError, match="background_rule must be one of .*, got 'half'"):
        DropLoss(K, STATISTICS, background_rule="half")
    with pytest.raises(ValueError, match="background_base must be a number above 1, got 1"):
        DropLoss(K, STATISTICS, background_base=1.0)


def test_golden_recorded_draws():
    golden = load_golden("droploss")
    loss = DropLoss(40, golden_statistics(golden), frequency_threshold=float(golden["lambda"]))
    for step in golden_steps(golden, "seq"):
        logits, targets = golden_batch(golden, step)
        draws = torch.from_numpy(golden[f"{step}/uniform"])
        loss.uniform = replay_of(draws)
        weights = dense_weights(loss, logits, targets)
        compare(METHOD, f"droploss/{step}/weight", weights, golden[f"{step}/weight"])
        # NaN is recorded where no region is foreground; nothing is dropped there.
        ratio = np.nan_to_num(golden[f"{step}/ratio"], nan=1.0)
        compare(METHOD, f"droploss/{step}/ratio", tail_share(targets, loss.is_tail), ratio)
        value, gradient = value_and_gradient(loss, logits, targets)
        compare(METHOD, f"droploss/{step}/loss", value, golden[f"{step}/loss"])
        compare(METHOD, f"droploss/{step}/grad", gradient, golden[f"{step}/grad"])
    scores = loss.scores(torch.from_numpy(golden["infer/logits_q"]).double() / 64)
    compare(METHOD, "droploss/infer/scores", scores, golden["infer/scores"])


def test_golden_draws_follow_the_seed():
    golden = load_golden("droploss")
    loss = DropLoss(40, golden_statistics(golden))  # rare and common is what lambda stands for
    for step in golden_steps(golden, "seq"):
        logits, targets = golden_batch(golden, step)
        torch.manual_seed(int(golden[f"{step}/seed"]))
        compare(
            METHOD,
            f"droploss/{step}/uniform",
            loss.uniform(logits.shape),
            golden[f"{step}/uniform"],
        )
        torch.manual_seed(int(golden[f"{step}/seed"]))
        with mock.patch.object(one_pass, "looking_is_free", lambda tensor: False):
            value = loss(logits, targets)  # which draws for all regions
        assert_close(value.item(), float(golden[f"{step}/loss"]))


def test_draws_for_the_background_only():
    loss = DropLoss(K, STATISTICS)
    logits, targets = batch(loss)
    with mock.patch.object(torch, "rand", wraps=torch.rand) as rand:
        loss(logits, targets)
    background = int((targets == K).sum())
    assert 0 < background < len(targets)
    rand.assert_called_once_with((1 + background, K), device=logits.device)
