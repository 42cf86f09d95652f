"""FBS-AEGL: weighting factor, both kinds of weights, and the rulings on the paper's misprints."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lt_detectron2.losses import DropLoss, FBSAEGLoss, SigmoidCrossEntropyLoss, drop
from lt_detectron2.losses.drop import tail_share
from lt_detectron2.statistics import ClassStatistics
from tests.golden import load_golden
from tests.ops.cross_entropy_reference import one_hot
from tests.parity import compare

from .factory import STATISTICS, K, batch, dense_weights, replay_of, value_and_gradient

METHOD = "FBSAEGLoss"
PLAIN = {"foreground_weight": False, "background_weight": False}
NEUTRAL = {"gamma": 0.0, "mu": 0.0, "keep_rule": "always"}

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "fgw_only": {"background_weight": False},
    "bgw_only": {"foreground_weight": False},
    "no_wf": {"weighting_factor": False},
    "wf_mean": {"normalize_factor": True},
    "ber_literal": {"keep_rule": "literal"},
    "no_ber": {"keep_rule": "always"},
    "plain_bce": PLAIN,
    "mu_0p3": {"mu": 0.3},
    "gamma_0p9": {"gamma": 0.9},
    "gumbel_full": {"activation": "gumbel"},
    "gumbel_no_wf": {"activation": "gumbel", "weighting_factor": False},
}


def test_value_by_hand():
    # Class 0 has one object, wf = 1; class 1 is frequent with 200, wf = 0.3. Zero logits, mu 0.5:
    # every negative counts. The only foreground region is not of a low class, so sigma is 0 and the
    # background region loses class 0.
    statistics = ClassStatistics([1, 200], [1, 200], 300)
    loss = FBSAEGLoss(2, statistics, mu=0.5)
    value = loss(torch.zeros(2, 2), torch.tensor([1, 2]))
    assert_close(value.item(), (1 + 0.3 + 0.3) / 2 * math.log(2))


@pytest.mark.parametrize("arguments", [PLAIN, NEUTRAL], ids=["switched off", "neutral"])
def test_neutral_parameters_are_sigmoid_cross_entropy(arguments: dict):
    loss = FBSAEGLoss(K, STATISTICS, **arguments)
    logits, targets = batch(loss)
    assert_close(loss(logits, targets), SigmoidCrossEntropyLoss(K)(logits, targets))


def test_background_without_gate_and_factor_is_drop_loss():
    loss = FBSAEGLoss(
        K, STATISTICS, gamma=0.0, foreground_weight=False, background_gate="off"
    )  # fmt: skip
    drop = DropLoss(K, STATISTICS)
    draws = torch.rand(24, K)
    loss.uniform = drop.uniform = replay_of(draws)
    logits, targets = batch(loss)
    background = targets == K
    losses = (module.region_losses(logits, targets)[background] for module in (loss, drop))
    assert_close(*losses)


@pytest.mark.parametrize("gate", ["all", "low", "off"])
@pytest.mark.parametrize("rule", ["share", "literal", "always"])
@pytest.mark.parametrize("activation", ["sigmoid", "gumbel"])
@pytest.mark.parametrize("kind", ["mixed", "background"])
def test_equals_slow_reference(gate: str, rule: str, activation: str, kind: str):
    loss = FBSAEGLoss(
        K,
        STATISTICS,
        gamma=0.8,
        mu=0.6,
        background_gate=gate,
        keep_rule=rule,
        activation=activation,
    )
    draws = torch.rand(24, K)
    loss.uniform = replay_of(draws)
    logits, targets = batch(loss, kind=kind)
    is_low = [int(images) <= 100 for images in STATISTICS.image_count]
    factor = [(1 - 0.8) / (1 - 0.8 ** int(n)) for n in STATISTICS.instance_count]
    foreground = [t for t in targets.tolist() if t < K]
    sigma = sum(is_low[t] for t in foreground) / len(foreground) if foreground else 1.0
    total = 0.0
    for i, t in enumerate(targets.tolist()):
        for j in range(K):
            z = logits[i, j].item()
            p = 1 / (1 + math.exp(-z)) if activation == "sigmoid" else math.exp(-math.exp(-z))
            if j == t:
                total -= factor[j] * math.log(p)
                continue
            counts = p >= 0.6
            if t == K:
                counts = counts or gate == "off" or (gate == "low" and not is_low[j])
                if is_low[j] and rule != "always":
                    below = bool(draws[i, j] < sigma)
                    counts = counts and (below if rule == "share" else not below)
            total -= factor[j] * math.log(1 - p) if counts else 0
    assert_close(loss(logits, targets).item(), total / len(targets))


def test_literal_rule_keeps_nothing_of_the_tail_where_sigma_is_zero():
    loss = FBSAEGLoss(K, STATISTICS, gamma=0.0, mu=0.0, keep_rule="literal")
    targets = torch.tensor([0, K])  # class 0 is frequent
    weights = dense_weights(loss, torch.zeros(2, K), targets)
    assert_close(weights[1], (~loss.is_low).float())


def test_negatives_that_nobody_believes_have_no_gradient():
    loss = FBSAEGLoss(K, STATISTICS)
    logits, targets = batch(loss)
    _, gradient = value_and_gradient(loss, logits, targets)
    spared = (one_hot(logits, targets) == 0) & (logits.sigmoid() < 0.7)
    assert spared.any() and not gradient[spared].any()


def test_classifier_starts_as_the_activation_wants():
    classifier = nn.Linear(3, K)
    for activation, probability in (("sigmoid", 0.001), ("gumbel", math.exp(-math.exp(2)))):
        loss = FBSAEGLoss(K, STATISTICS, activation=activation)
        loss.init_classifier(classifier)
        scores = loss.scores(classifier(torch.zeros(1, 3)))
        assert_close(scores[0, :K], torch.full((K,), probability))
        assert scores[0, K] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.0}, "gamma must be at least 0 and below 1, got 1"),
        ({"mu": -0.1}, "mu must lie in 0..1, got -0.1"),
        ({"activation": "softmax"}, "activation must be one of .*, got 'softmax'"),
        ({"background_gate": "none"}, "background_gate must be one of .*, got 'none'"),
        ({"keep_rule": "never"}, "keep_rule must be one of .*, got 'never'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FBSAEGLoss(K, STATISTICS, **arguments)


def test_sigma_of_all_processes(monkeypatch: pytest.MonkeyPatch):
    # This process sees a foreground region of the tail, the other one that is not: sigma is 1 here
    # and 1/2 over both, and all draws are 0.6.
    other_process = torch.tensor([1.0, 0.0], dtype=torch.float64)
    monkeypatch.setattr(
        drop, "all_reduce_sum", lambda *counts: list(torch.stack(counts) + other_process)
    )
    targets = torch.tensor([6, K])
    low = int((STATISTICS.frequency_group() < 2).sum())
    for sync, kept in ((False, 2 * K), (True, 2 * K - low)):
        loss = FBSAEGLoss(K, STATISTICS, gamma=0.0, mu=0.0, sync_sigma=sync)
        loss.uniform = lambda shape, rows: torch.full((len(rows), *shape[1:]), 0.6)
        assert_close(loss(torch.zeros(2, K), targets).item(), kept / 2 * math.log(2))
        loss.eval()  # one process alone may compute a validation loss
        assert_close(loss(torch.zeros(2, K), targets).item(), K * math.log(2))


def _golden_statistics(counts: np.ndarray, low: np.ndarray) -> tuple[ClassStatistics, float]:
    """Counts in which an image frequency below the threshold marks the low classes."""
    return ClassStatistics(counts, np.where(low, 1, 2), int(counts.max())), 1.5 / counts.max()


def test_golden_figure_3():
    golden = load_golden("fbs_aegl")
    statistics, threshold = _golden_statistics(golden["fig3_counts"], golden["fig3_low"])
    hyper_parameters = {"gamma": float(golden["fig3_gamma"]), "mu": float(golden["fig3_mu"])}
    # The figure shows one background region whose low class is gated, not dropped.
    loss = FBSAEGLoss(
        3, statistics, frequency_threshold=threshold, keep_rule="always", **hyper_parameters
    )
    compare(METHOD, "fbs_aegl/fig3_wf_exact", loss.class_factor, golden["fig3_wf_exact"])
    assert np.abs(loss.class_factor.numpy() - golden["fig3_wf_printed"]).max() > 1
    gamma, counts = loss.gamma, golden["fig3_counts"]
    slip = np.where(counts == 2, 1 - gamma, 1 - gamma) / np.where(
        counts == 2, 1 - gamma**counts, gamma**counts
    )
    compare(METHOD, "fbs_aegl/fig3_wf_slip", slip, golden["fig3_wf_slip"])
    for region in "AB":
        logits = torch.from_numpy(golden[f"fig3_z{region}"])
        targets = torch.from_numpy(golden[f"fig3_y{region}"])
        weights = dense_weights(loss, logits, targets)
        compare(METHOD, f"fbs_aegl/fig3_W{region}", weights, golden[f"fig3_W{region}"])
        scores = loss.scores(logits)[:, :3]
        compare(METHOD, f"fbs_aegl/fig3_p{region}", scores, golden[f"fig3_p{region}"])


def test_golden_weighting_factor():
    golden = load_golden("fbs_aegl")
    counts = golden["wf_n"]
    statistics = ClassStatistics(counts, np.ones_like(counts), 1)
    factors = [
        FBSAEGLoss(100, statistics, gamma=float(gamma)).class_factor
        for gamma in golden["wf_gammas"]
    ]
    compare(METHOD, "fbs_aegl/wf_table", torch.stack(factors), golden["wf_table"])


def _golden_main(golden: np.lib.npyio.NpzFile, **hyper_parameters: Any) -> FBSAEGLoss:
    statistics, threshold = _golden_statistics(golden["main_counts"], golden["main_low"])
    loss = FBSAEGLoss(7, statistics, frequency_threshold=threshold, **hyper_parameters)
    draws = torch.from_numpy(golden["main_U"])
    loss.uniform = replay_of(draws)
    return loss


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_variants(variant: str):
    golden = load_golden("fbs_aegl")
    loss = _golden_main(golden, **VARIANTS[variant])
    logits, targets = torch.from_numpy(golden["main_logits"]), torch.from_numpy(golden["main_gt"])
    value, gradient = value_and_gradient(loss, logits, targets)
    name = "main_p_gumbel" if variant.startswith("gumbel") else "main_p"
    for key, actual in (
        (f"main_{variant}_W", dense_weights(loss, logits, targets)),
        (f"main_{variant}_loss", value),
        (f"main_{variant}_grad", gradient),
        (f"main_{variant}_grad_fd", gradient),
        ("main_targets", one_hot(logits, targets)),
        ("main_sigma", tail_share(targets, loss.is_low)),
        (name, loss.scores(logits)[:, :7]),
    ):
        compare(METHOD, f"fbs_aegl/{key}", actual, golden[key])
    if variant == "full":
        assert np.abs(gradient.numpy() - golden["main_full_eq7_as_printed"]).max() > 0.01


@pytest.mark.parametrize("rule", ["sigma", "literal"])
def test_golden_keep_masks(rule: str):
    golden = load_golden("fbs_aegl")
    keep_rule = "share" if rule == "sigma" else "literal"
    loss = _golden_main(golden, gamma=0.0, mu=0.0, keep_rule=keep_rule)
    logits, targets = torch.from_numpy(golden["main_logits"]), torch.from_numpy(golden["main_gt"])
    weights = dense_weights(loss, logits, targets)
    background = golden["main_gt"] == 7
    name = f"main_keep_{rule}_mask"
    compare(METHOD, f"fbs_aegl/{name}", weights[background], golden[name][background])
