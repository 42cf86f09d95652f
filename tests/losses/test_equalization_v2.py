"""EQL v2: weights, state and scores, in one process and in two."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from lt_detectron2.losses import EqualizationLossV2, SigmoidCrossEntropyLoss
from tests.golden import load_golden
from tests.parity import compare

from .factory import K, batch, dense_weights, golden_batch, golden_steps, train, value_and_gradient
from .two_processes import run_in_two_processes

METHOD = "EqualizationLossV2"


def test_value_by_hand():
    # One class that has gathered positive gradient 0.6 and negative gradient 1: with gamma 0 its
    # weights are r = 1/2 and q = 1 + 4 / 2 = 3. Zero logits: each term is log 2, weighted.
    loss = EqualizationLossV2(1, gamma=0.0)
    loss.positive_gradient.fill_(0.6)
    loss.negative_gradient.fill_(1.0)
    value = loss(torch.zeros(2, 2), torch.tensor([0, 1]))
    foreground, background = 3 + 1, 0.5 + 1
    assert_close(value, torch.tensor((foreground + background) / 2 * math.log(2)))
    # |sigmoid(0) - y| is 1/2 in each cell; the weighted gradients are added.
    assert_close(loss.positive_gradient.item(), 0.6 + 3 / 2)
    assert_close(loss.negative_gradient.item(), 1.0 + 0.5 / 2)
    assert_close(loss.gradient_ratio.item(), 2.1 / 1.25)


def test_first_step_is_sigmoid_cross_entropy():
    loss = EqualizationLossV2(K)
    logits, targets = batch(loss)
    assert loss.gradient_ratio.eq(100).all()
    plain = SigmoidCrossEntropyLoss(K + 1)(logits, targets)  # the background is class K
    assert_close(loss(logits, targets), plain)
    assert not loss.gradient_ratio.eq(100).any()


def test_switches_off_are_sigmoid_cross_entropy():
    loss = train(EqualizationLossV2(K, reweight_positive=False, reweight_negative=False))
    logits, targets = batch(loss)
    assert_close(loss(logits, targets), SigmoidCrossEntropyLoss(K + 1)(logits, targets))


def test_equals_slow_reference():
    loss = EqualizationLossV2(K, gamma=6.0, mu=0.5, alpha=2.0)
    positive, negative = [0.0] * K, [0.0] * K
    for step in range(3):
        logits, targets = batch(loss, seed=step)
        ratio = [p / (n + 1e-10) if step else 100.0 for p, n in zip(positive, negative)]
        total = 0.0
        for z, t in zip(logits.tolist(), targets.tolist()):
            for j in range(K + 1):
                p = 1 / (1 + math.exp(-z[j]))
                f = 1 / (1 + math.exp(-6.0 * (ratio[j] - 0.5))) if j < K else 1.0
                weight = 1 + 2.0 * (1 - f) if j == t else f
                total -= weight * math.log(p if j == t else 1 - p)
                if j < K and j == t:
                    positive[j] += weight * (1 - p)
                elif j < K:
                    negative[j] += weight * p
        assert_close(loss(logits, targets).item(), total / len(targets))
    assert_close(loss.positive_gradient.tolist(), positive)
    assert_close(loss.negative_gradient.tolist(), negative)


def test_class_without_positives_is_spared_from_the_second_step():
    loss = EqualizationLossV2(3)
    loss(torch.zeros(2, 4), torch.tensor([0, 3]))
    _, gradient = value_and_gradient(loss, torch.zeros(1, 4), torch.tensor([3]))
    assert_close(gradient[0, 1].item(), 0.5 / (1 + math.exp(12 * 0.8)))


def test_two_column_softmax_is_the_sigmoid_of_the_difference():
    pairs, single = EqualizationLossV2(K, formulation="softmax_2c"), EqualizationLossV2(K)
    assert pairs.num_logits == 2 * (K + 1)
    for step in range(2):
        logits, targets = batch(pairs, seed=step)
        probability = torch.stack(logits.chunk(2, dim=1)).softmax(dim=0)[0]
        assert_close(single(torch.logit(probability), targets), pairs(logits, targets))
    assert_close(pairs.state_dict(), single.state_dict())
    classifiers = [nn.Linear(2, loss.num_logits) for loss in (pairs, single)]
    for loss, classifier in zip((pairs, single), classifiers):
        loss.init_classifier(classifier)
    starts = [loss.scores(c.bias[None]) for loss, c in zip((pairs, single), classifiers)]
    assert_close(*starts)


@pytest.mark.parametrize("formulation", ["sigmoid", "softmax_2c"])
def test_tasks_start_with_their_prior_probabilities(formulation: str):
    settings = {"prior_probability": 0.01, "background_probability": 0.5}
    loss = EqualizationLossV2(K, formulation=formulation, objectness=False, **settings)
    classifier = nn.Linear(2, loss.num_logits)
    loss.init_classifier(classifier)
    start = loss.scores(classifier(torch.zeros(1, 2)))
    assert_close(start, torch.tensor([[0.01] * K + [0.5]]))


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", -1.0), ("mu", math.nan), ("alpha", math.inf)]
)
def test_numbers_out_of_range_are_refused(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0, got"):
        EqualizationLossV2(K, **{name: value})


def test_unknown_formulation_is_refused():
    with pytest.raises(ValueError, match="formulation must be one of .*, got 'softmax'"):
        EqualizationLossV2(K, formulation="softmax")


def _compare_state(loss: EqualizationLossV2, name: str, golden) -> None:
    file, step = name.split("/", 1)
    for key, state in (
        ("pos_grad", loss.positive_gradient),
        ("neg_grad", loss.negative_gradient),
        ("pos_neg", loss.gradient_ratio),
    ):
        compare(METHOD, f"{file}/{step}/{key}", state, golden[f"{step}/{key}"])


def _weights(loss: EqualizationLossV2) -> tuple[Tensor, Tensor]:
    """Weights of positives and of negatives, (K+1,) each, that the next step will use."""
    columns = loss.num_classes + 1
    targets = torch.arange(columns)
    logits = torch.zeros(columns, columns, dtype=torch.float64)
    with torch.no_grad():  # leaves the state alone
        weights = dense_weights(loss, logits, targets)
    return weights.diagonal(), weights[0].index_copy(0, targets[:1], weights[1, :1])


def test_golden_sequence():
    golden = load_golden("eqlv2")
    loss = EqualizationLossV2(40)
    for step in golden_steps(golden, "seq"):
        positive, negative = _weights(loss)
        compare(METHOD, f"eqlv2/{step}/pos_w", positive, golden[f"{step}/pos_w"])
        compare(METHOD, f"eqlv2/{step}/neg_w", negative, golden[f"{step}/neg_w"])
        value, gradient = value_and_gradient(loss, *golden_batch(golden, step))
        compare(METHOD, f"eqlv2/{step}/loss", value, golden[f"{step}/loss"])
        compare(METHOD, f"eqlv2/{step}/grad", gradient, golden[f"{step}/grad"])
        _compare_state(loss, f"eqlv2/{step}", golden)


@pytest.mark.parametrize("objectness", [True, False])
def test_golden_scores(objectness: bool):
    golden = load_golden("eqlv2")
    loss = EqualizationLossV2(40, objectness=objectness)
    scores = loss.scores(torch.from_numpy(golden["infer/logits_q"]).double() / 64)
    name = f"infer/scores_obj{int(objectness)}"
    compare(METHOD, f"eqlv2/{name}", scores, golden[name])
    assert loss.num_logits == int(golden["infer/channels"])


def test_golden_two_column_softmax():
    golden = load_golden("eqlv2_2csoftmax_derived")
    loss = EqualizationLossV2(40, formulation="softmax_2c")
    file = "eqlv2_2csoftmax_derived"
    for step in golden_steps(golden, "seq"):
        pair = [torch.from_numpy(golden[f"{step}/logits_{sign}_q"]) for sign in ("pos", "neg")]
        targets = torch.from_numpy(golden[f"{step}/labels"])
        value, gradient = value_and_gradient(loss, torch.cat(pair, 1).double() / 64, targets)
        compare(METHOD, f"{file}/{step}/loss", value, golden[f"{step}/loss"])
        for sign, part in zip(("pos", "neg"), gradient.chunk(2, dim=1)):
            compare(METHOD, f"{file}/{step}/grad_{sign}", part, golden[f"{step}/grad_{sign}"])
        _compare_state(loss, f"{file}/{step}", golden)


def _run_recorded_steps(rank: int, steps: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    loss = EqualizationLossV2(40)
    outputs = []
    for parts in steps:
        value, gradient = value_and_gradient(loss, *parts[rank])
        state = {
            "pos_grad": loss.positive_gradient.clone(),
            "neg_grad": loss.negative_gradient.clone(),
            "pos_neg": loss.gradient_ratio,
        }
        outputs.append({"loss": value, "grad": gradient, **state})
    return outputs


def test_golden_two_processes():
    golden = load_golden("eqlv2")
    names = golden_steps(golden, "ddp")
    steps = [[golden_batch(golden, f"{name}/rank{rank}") for rank in (0, 1)] for name in names]
    for rank, outputs in enumerate(run_in_two_processes(_run_recorded_steps, steps)):
        for name, output in zip(names, outputs):
            for key, actual in output.items():
                array = f"{name}/rank{rank}/{key}"
                compare(METHOD, f"eqlv2/{array}", actual, golden[array])


def test_scores_multiply_by_objectness():
    logits = torch.tensor([[0.0, 1.0, math.log(3)]])  # background probability 3/4
    with_objectness, without = (
        EqualizationLossV2(2, objectness=flag).scores(logits) for flag in (True, False)
    )
    assert_close(without, logits.sigmoid())
    assert_close(
        with_objectness, logits.sigmoid() * F.pad(torch.tensor([0.25, 0.25]), (0, 1), value=1)
    )
