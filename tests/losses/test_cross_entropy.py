"""The two families on their own: values by hand, slow references, equality with torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lt_detectron2.losses import SigmoidCrossEntropyLoss, SoftmaxCrossEntropyLoss
from lt_detectron2.ops import LogitShifts
from tests.golden import load_golden
from tests.parity import compare

from .factory import K, batch, golden_batch, value_and_gradient


def test_softmax_value_by_hand():
    # Logits log 1, log 2, log 5 have probabilities 1/8, 2/8, 5/8.
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]).log()
    value = SoftmaxCrossEntropyLoss(2)(logits, torch.tensor([1, 2]))
    assert_close(value, torch.tensor((math.log(8 / 2) + math.log(8 / 5)) / 2))
    scores = SoftmaxCrossEntropyLoss(2).scores(logits)
    assert_close(scores, torch.tensor([[0.125, 0.25, 0.625]] * 2))


def test_softmax_equals_torch_to_the_last_bit():
    loss = SoftmaxCrossEntropyLoss(K)
    logits, targets = batch(loss, regions=512, dtype=torch.float32)
    value, gradient = value_and_gradient(loss, logits, targets)
    expected = F.cross_entropy(logits, targets, reduction="mean")
    expected.backward()
    assert torch.equal(value, expected.detach()) and torch.equal(gradient, logits.grad)


def test_softmax_hooks_shift_and_weight():
    class Shifted(SoftmaxCrossEntropyLoss):
        """Doubles logits and weights a region by 1 + its target."""

        @property
        def class_weights(self):
            return torch.arange(1.0, self.num_classes + 2)

        def logit_shifts(self, logits, targets):
            return LogitShifts(scale=2.0)

    loss = Shifted(K)
    logits, targets = batch(loss)
    terms = [(1 + int(t)) * (torch.logsumexp(2 * z, 0) - 2 * z[t]) for z, t in zip(logits, targets)]
    assert_close(loss(logits, targets), sum(terms) / len(targets))
    assert_close(loss.region_losses(logits, targets), torch.stack(terms))


def test_sigmoid_value_by_hand():
    # Zero logits: each of three terms a region is log 2. A logit of log 3 has probability 3/4.
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0]])
    loss = SigmoidCrossEntropyLoss(3)
    value = loss(logits, torch.tensor([3, 0]))
    assert_close(value, torch.tensor((3 * math.log(2) + math.log(4 / 3) + 2 * math.log(2)) / 2))
    assert_close(loss.scores(logits)[1], torch.tensor([0.75, 0.5, 0.5, 0.0]))


def test_sigmoid_equals_slow_reference():
    loss = SigmoidCrossEntropyLoss(K)
    logits, targets = batch(loss)
    total = torch.zeros((), dtype=torch.float64)
    for z, t in zip(logits, targets):
        for j in range(K):
            total = total - (z[j].sigmoid().log() if j == t else (-z[j]).sigmoid().log())
    assert_close(loss(logits, targets), total / len(targets))


def test_prior_bias_is_where_training_starts():
    loss = SigmoidCrossEntropyLoss(1203)
    classifier = nn.Linear(4, loss.num_logits)
    loss.init_classifier(classifier)
    assert_close(classifier.bias[0].item(), -6.9068, rtol=0, atol=1e-4)
    assert_close(loss.scores(classifier.bias[None])[0, 0].item(), 0.001)
    start = loss(classifier.bias[None].expand(4, -1), torch.tensor([0, 5, 1203, 1203]))
    assert start < 10  # without the prior: 1203 log 2 = 834


@pytest.mark.parametrize("prior_probability", [0.0, 1.0, -0.1, math.nan])
def test_prior_must_be_a_probability(prior_probability: float):
    with pytest.raises(ValueError, match="prior_probability must lie strictly between 0 and 1"):
        SigmoidCrossEntropyLoss(3, prior_probability=prior_probability)


def test_sigmoid_golden():
    golden = load_golden("federated")  # its "plain" case samples no classes
    logits, targets = golden_batch(golden, "seq/s0")
    loss = SigmoidCrossEntropyLoss(40)
    value, gradient = value_and_gradient(loss, logits[:, :40], targets)
    compare("SigmoidCrossEntropyLoss", "federated/plain/loss", value, golden["plain/loss"])
    # The recorded column 40 takes no part in the loss: its gradient is zero.
    gradient = F.pad(gradient, (0, 1))
    compare("SigmoidCrossEntropyLoss", "federated/plain/grad", gradient, golden["plain/grad"])


def test_softmax_golden():
    golden = load_golden("federated")  # the official "federated softmax" is plain cross entropy
    loss = SoftmaxCrossEntropyLoss(40)
    for step in range(7):
        name = f"seq/s{step}"
        value = loss(*golden_batch(golden, name))
        compare(
            "SoftmaxCrossEntropyLoss",
            f"federated/{name}/softmax_fed_loss",
            value,
            golden[f"{name}/softmax_fed_loss"],
        )
