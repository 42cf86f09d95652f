"""EQL and its softmax form."""

import math

import pytest
import torch
from torch.testing import assert_close

from lt_detectron2.losses import (
    EqualizationLoss,
    SigmoidCrossEntropyLoss,
    SoftmaxCrossEntropyLoss,
    SoftmaxEqualizationLoss,
)
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
    replay_of,
    value_and_gradient,
)

THREE_CLASSES = ClassStatistics(
    instance_count=[2, 90, 900], image_count=[1, 50, 500], num_images=1000
)


def test_value_by_hand():
    # Zero logits: every term is log 2. Class 0 is in the tail, so the foreground region keeps the
    # terms of classes 1 and 2 and the background region keeps all three.
    loss = EqualizationLoss(3, THREE_CLASSES, frequency_threshold=0.01)
    value = loss(torch.zeros(2, 3), torch.tensor([2, 3]))
    assert_close(value, torch.tensor((2 + 3) / 2 * math.log(2)))


def test_positive_term_of_a_tail_class_stays():
    loss = EqualizationLoss(3, THREE_CLASSES, frequency_threshold=0.01)
    assert_close(loss(torch.zeros(1, 3), torch.tensor([0])), torch.tensor(3 * math.log(2)))


def test_no_threshold_is_sigmoid_cross_entropy():
    loss = EqualizationLoss(K, STATISTICS, frequency_threshold=0.0)
    logits, targets = batch(loss)
    assert_close(loss(logits, targets), SigmoidCrossEntropyLoss(K)(logits, targets))


def test_equals_slow_reference():
    loss = EqualizationLoss(K, STATISTICS)
    logits, targets = batch(loss)
    total = 0.0
    for z, t in zip(logits.detach(), targets.tolist()):
        for j in range(K):
            is_tail = STATISTICS.image_count[j] <= 100
            if j == t:
                total -= math.log(z[j].sigmoid())
            elif not (t < K and is_tail):
                total -= math.log((-z[j]).sigmoid())
    assert_close(loss(logits, targets).item(), total / len(targets))


def test_default_tail_is_rare_and_common():
    statistics = ClassStatistics([300, 300, 300], [10, 100, 101], 5000)
    assert EqualizationLoss(3, statistics).is_tail.tolist() == [True, True, False]
    # The official thresholds on LVIS v0.5: with the paper's 0.00176, 100 images are too many.
    lvis = ClassStatistics([300, 300, 300], [10, 100, 101], 56740)
    for threshold, tail in ((0.00177, [True, True, False]), (0.00176, [True, False, False])):
        loss = EqualizationLoss(3, lvis, frequency_threshold=threshold)
        assert loss.is_tail.tolist() == tail


def test_threshold_must_not_be_negative():
    with pytest.raises(ValueError, match="frequency_threshold must be a finite number >= 0"):
        EqualizationLoss(K, STATISTICS, frequency_threshold=-0.1)


def test_golden():
    golden = load_golden("eql")
    loss = EqualizationLoss(
        40, golden_statistics(golden), frequency_threshold=float(golden["lambda"])
    )
    for step in golden_steps(golden, "seq"):
        value, gradient = value_and_gradient(loss, *golden_batch(golden, step))
        compare("EqualizationLoss", f"eql/{step}/loss", value, golden[f"{step}/loss"])
        compare("EqualizationLoss", f"eql/{step}/grad", gradient, golden[f"{step}/grad"])
    scores = loss.scores(torch.from_numpy(golden["infer/logits_q"]).double() / 64)
    compare("EqualizationLoss", "eql/infer/scores", scores, golden["infer/scores"])
    # lambda 100.5 / 20000 is what the default means.
    assert torch.equal(loss.is_tail, EqualizationLoss(40, golden_statistics(golden)).is_tail)


def test_softmax_value_by_hand():
    # Zero logits. Class 0 is in the tail: it leaves the softmax of class 2's region, which then
    # has three entries, but not its own, nor the background's.
    loss = SoftmaxEqualizationLoss(3, THREE_CLASSES, frequency_threshold=0.01, gamma=1.0)
    logits = torch.zeros(3, 4)
    value, gradient = value_and_gradient(loss, logits, torch.tensor([2, 0, 3]))
    assert_close(value, torch.tensor((math.log(3) + 2 * math.log(4)) / 3))
    assert gradient[0, 0] == 0 and gradient[1:].ne(0).all()
    assert_close(loss.scores(logits), torch.full((3, 4), 0.25))


@pytest.mark.parametrize("neutral", [{"frequency_threshold": 0.0}, {"gamma": 0.0}])
def test_softmax_with_neutral_parameters_is_softmax(neutral: dict):
    loss = SoftmaxEqualizationLoss(K, STATISTICS, **neutral)
    logits, targets = batch(loss)
    assert_close(loss(logits, targets), SoftmaxCrossEntropyLoss(K)(logits, targets))


def test_softmax_equals_slow_reference():
    loss = SoftmaxEqualizationLoss(K, STATISTICS, gamma=0.6)
    logits, targets = batch(loss)
    draws = torch.rand(logits.shape)
    loss.uniform = replay_of(draws)
    total = 0.0
    for i, (z, t) in enumerate(zip(logits.tolist(), targets.tolist())):
        denominator = 0.0
        for k in range(K + 1):
            is_tail = k < K and STATISTICS.image_count[k] <= 100
            drops = t < K and k != t and is_tail and draws[i, k] < 0.6
            denominator += 0.0 if drops else math.exp(z[k])
        total -= math.log(math.exp(z[t]) / denominator)
    assert_close(loss(logits, targets).item(), total / len(targets))


def test_softmax_gamma_must_be_a_probability():
    with pytest.raises(ValueError, match="gamma must be a probability in 0..1, got 1.5"):
        SoftmaxEqualizationLoss(K, STATISTICS, gamma=1.5)
