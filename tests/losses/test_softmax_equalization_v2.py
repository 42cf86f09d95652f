"""Softmax equalization by accumulated gradients."""

import math

import pytest
import torch
from torch.testing import assert_close

from lt_detectron2.losses import SoftmaxCrossEntropyLoss, SoftmaxEqualizationLossV2
from tests.golden import load_golden
from tests.parity import compare

from .factory import K, batch, golden_batch, train, value_and_gradient, without_background

METHOD = "SoftmaxEqualizationLossV2"


def test_value_by_hand():
    # Gathered gradients 3 and 1, 2 on average: the classes' odds are multiplied by 3/2 and 1/2.
    loss = SoftmaxEqualizationLossV2(2)
    loss.positive_gradient.copy_(torch.tensor([3.0, 1.0]))
    value = loss(torch.zeros(2, 3), torch.tensor([1, 2]))
    assert_close(value, torch.tensor((math.log(6) + math.log(3)) / 2))
    # Probabilities 1/2, 1/6, 1/3. Class 1's own region pulls by 5/6, of a mean over two.
    assert_close(loss.positive_gradient.tolist(), [3.0, 1 + 5 / 12])
    assert_close(loss.negative_gradient.tolist(), [1 / 2, 1 / 12])


@pytest.mark.parametrize("formulation", ["clamped", "share"])
def test_first_step_and_no_tau_are_softmax(formulation: str):
    for loss in (
        SoftmaxEqualizationLossV2(K, formulation=formulation),
        train(SoftmaxEqualizationLossV2(K, formulation=formulation, tau=0.0)),
    ):
        logits, targets = batch(loss)
        assert_close(loss(logits, targets), SoftmaxCrossEntropyLoss(K)(logits, targets))


@pytest.mark.parametrize("indicator", ["positive", "negative"])
@pytest.mark.parametrize("formulation", ["clamped", "share"])
def test_equals_slow_reference(formulation: str, indicator: str):
    tau = 0.5
    loss = SoftmaxEqualizationLossV2(K, indicator=indicator, formulation=formulation, tau=tau)
    gathered = {"positive": [0.0] * K, "negative": [0.0] * K}
    for step in range(3):
        logits, targets = batch(loss, seed=step)
        g = gathered[indicator]
        if formulation == "clamped":
            prior = [max(x, 1e-4) ** tau for x in g]
        else:
            prior = [(x / (sum(g) + 1e-4)) ** tau + 1e-9 for x in g]
        prior = [x / (sum(prior) / K) for x in prior] + [1.0]
        total = 0.0
        for z, t in zip(logits.tolist(), targets.tolist()):
            odds = [v * math.exp(x) for v, x in zip(prior, z)]
            total -= math.log(odds[t] / sum(odds))
            for j in range(K):
                p = odds[j] / sum(odds)
                gathered["positive" if j == t else "negative"][j] += abs(p - (j == t)) / 24
        assert_close(loss(logits, targets).item(), total / len(targets))
    assert_close(loss.positive_gradient.tolist(), gathered["positive"])
    assert_close(loss.negative_gradient.tolist(), gathered["negative"])
    assert_close(loss.scores(logits), logits.softmax(dim=1))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("indicator", "both", r"indicator must be one of \('positive', 'negative'\), got 'both'"),
        ("formulation", "sum", "formulation must be one of .*, got 'sum'"),
        ("tau", -1.0, "tau must be a finite number >= 0, got -1.0"),
    ],
)
def test_wrong_arguments_are_refused(name: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        SoftmaxEqualizationLossV2(K, **{name: value})


GOLDEN_CASES = {
    "softmax_eql": {},
    "softmax_eql_neg": {"indicator": "negative"},
    "softmax_eqlv2": {"formulation": "share"},
}


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden(case: str):
    golden = load_golden("softmax_eql")
    loss = SoftmaxEqualizationLossV2(40, **GOLDEN_CASES[case])
    for step in range(6):
        logits, targets = golden_batch(golden, f"softmax_eql/s{step}")
        value, gradient = value_and_gradient(loss, without_background(logits), targets)
        for key, actual in (
            ("loss", value),
            ("grad", gradient[:, :-1]),
            ("pos_grad", loss.positive_gradient),
            ("neg_grad", loss.negative_gradient),
            ("pos_neg", loss.positive_gradient / (loss.negative_gradient + 1e-10)),
        ):
            name = f"{case}/s{step}/{key}"
            compare(METHOD, f"softmax_eql/{name}", actual, golden[name])
