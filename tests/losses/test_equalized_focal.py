"""EFL and EQFL: focusing, the gradient that the state gathers, normaliser and stability."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lt_detectron2.losses import EqualizedFocalLoss
from tests.golden import load_golden
from tests.ops.cross_entropy_reference import one_hot
from tests.parity import compare

from .factory import BATCH_KINDS, K, batch, train, value_and_gradient

METHOD = "EqualizedFocalLoss"


def test_value_by_hand():
    # One class with the gradient ratio 1/2: gamma_j = 2 + 8 / 2 = 6, weight 6 / 2 = 3. Zero
    # logits: sigmoid(-x)^6 log 2 = log 2 / 64, with alpha 1/4 and 3/4. One foreground region.
    loss = EqualizedFocalLoss(1)
    loss.positive_gradient.fill_(1.0)
    loss.negative_gradient.fill_(2.0)
    value = loss(torch.zeros(2, 1), torch.tensor([0, 1]))
    assert_close(value.item(), 3 * (1 / 4 + 3 / 4) * math.log(2) / 64)
    # d/dx = -alpha 3 / 64 (1/2 + 6 / 2 log 2)
    slope = 3 / 64 * (1 / 2 + 3 * math.log(2))
    assert_close(loss.positive_gradient.item(), 1 + slope / 4)
    assert_close(loss.negative_gradient.item(), 2 + slope * 3 / 4)


def test_scale_zero_is_focal_loss():
    loss = train(EqualizedFocalLoss(K, scale=0.0, normalizer="regions"))
    logits, targets = batch(loss)
    is_own = one_hot(logits, targets).bool()
    hit = torch.where(is_own, logits.sigmoid(), (-logits).sigmoid())
    alpha = torch.where(is_own, 0.25, 0.75)
    assert_close(loss(logits, targets), -(alpha * (1 - hit) ** 2 * hit.log()).sum() / len(targets))


def _slow_terms(
    loss: EqualizedFocalLoss, logits: Tensor, targets: Tensor, quality: Tensor | None, gamma: list
) -> list[list[float]]:
    terms = []
    for i, t in enumerate(targets.tolist()):
        row = []
        for j in range(K):
            p = 1 / (1 + math.exp(-float(logits[i, j])))
            y = float(j == t)
            if quality is not None:
                y *= float(quality[i])
                value = abs(y - p) ** gamma[j] * -(y * math.log(p) + (1 - y) * math.log(1 - p))
            else:
                hit, alpha = (p, 0.25) if y else (1 - p, 0.75)
                value = -alpha * (1 - hit) ** gamma[j] * math.log(hit)
            row.append(gamma[j] / 2 * value)
        terms.append(row)
    return terms


@pytest.mark.parametrize("quality", [False, True])
@pytest.mark.parametrize("normalizer", ["foreground", "regions"])
def test_equals_slow_reference(quality: bool, normalizer: str):
    loss = EqualizedFocalLoss(K, scale=4.0, quality=quality, normalizer=normalizer)
    positive, negative = [0.0] * K, [0.0] * K
    for step in range(3):
        logits, targets = batch(loss, seed=step)
        iou = torch.rand(len(targets)).double() if quality else None
        ratio = [min(p / (n + 1e-10), 1) if step else 1.0 for p, n in zip(positive, negative)]
        gamma = [2 + 4.0 * (1 - g) for g in ratio]
        foreground = [t for t in targets.tolist() if t < K]
        divisor = len(foreground) if normalizer == "foreground" else len(targets)

        data = {} if iou is None else {"quality": iou}
        value = loss(logits, targets, **data)
        logits = logits.detach()
        terms = np.array(_slow_terms(loss, logits, targets, iou, gamma))
        step_size = 1e-6  # the gradient that the state gathers, by differences
        above = np.array(_slow_terms(loss, logits + step_size, targets, iou, gamma))
        below = np.array(_slow_terms(loss, logits - step_size, targets, iou, gamma))
        gradient = np.abs(above - below) / (2 * step_size) / divisor
        for i, t in enumerate(targets.tolist()):
            for j in range(K):
                (positive if j == t else negative)[j] += gradient[i, j]

        assert_close(value.item(), terms.sum() / divisor)
        assert_close(loss.positive_gradient.tolist(), positive, rtol=1e-6, atol=1e-8)
        assert_close(loss.negative_gradient.tolist(), negative, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("quality", [False, True])
@pytest.mark.parametrize("kind", BATCH_KINDS)
def test_state_gathers_the_gradient_of_the_loss(quality: bool, kind: str):
    loss = EqualizedFocalLoss(K, quality=quality)
    logits, targets = batch(loss, kind=kind, std=6.0)
    _, gradient = value_and_gradient(loss, logits, targets)
    is_target = one_hot(logits, targets).bool()
    assert_close(loss.positive_gradient, (gradient.abs() * is_target).sum(dim=0))
    assert_close(loss.negative_gradient, (gradient.abs() * ~is_target).sum(dim=0))


def test_quality_of_one_targets_one():
    loss = EqualizedFocalLoss(K, quality=True).eval()
    logits, targets = batch(loss)
    expected = loss(logits, targets)
    assert_close(loss(logits, targets, quality=torch.ones(len(targets))), expected)


@pytest.mark.parametrize("quality", [False, True])
def test_state_survives_what_overflows_the_official_code(quality: bool):
    loss = EqualizedFocalLoss(K, quality=quality)
    logits = torch.full((2, K), 20.0)
    value, gradient = value_and_gradient(loss, logits, torch.tensor([0, K]))
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    assert torch.isfinite(loss.gradient_ratio).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, "gamma must be a number above 0, got 0"),
        ({"scale": -1.0}, "scale must be a finite number >= 0, got -1"),
        ({"alpha": 1.0}, "alpha must lie strictly between 0 and 1, got 1"),
        ({"normalizer": "images"}, "normalizer must be one of .*, got 'images'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        EqualizedFocalLoss(K, **arguments)


def _recorded_step(golden: Mapping[str, np.ndarray], step: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and targets of the positions that are not ignored, and where they are, (2 x 32,)."""
    logits = torch.from_numpy(golden[f"{step}/logits_q"]).flatten(0, 1).double() / 64
    labels = torch.from_numpy(golden[f"{step}/target"]).flatten()  # 0 background, -1 ignored
    counted = labels >= 0
    targets = torch.where(labels == 0, 40, labels - 1)
    return logits[counted], targets[counted], counted


def _compare_step(
    loss: EqualizedFocalLoss, golden: Mapping[str, np.ndarray], inputs: str, case: str
) -> None:
    logits, targets, counted = _recorded_step(golden, inputs)
    value, gradient = value_and_gradient(loss, logits, targets)
    dense = torch.zeros(counted.numel(), 40, dtype=torch.float64)
    dense[counted] = gradient
    # The foreground regions in the sequence; some other number in the case of a given state.
    scale = (targets < 40).sum().clamp(min=1).double() / float(golden[f"{case}/normalizer"])
    compare(METHOD, f"efl/{case}/loss", value * scale, golden[f"{case}/loss"])
    dense = dense.view(2, -1, 40) * scale
    compare(METHOD, f"efl/{case}/grad", dense, golden[f"{case}/grad"])


def test_golden_sequence():
    golden = load_golden("efl")
    loss = EqualizedFocalLoss(40, scale=8.0)
    for step in (f"efl/s{number}" for number in range(6)):
        compare(METHOD, f"efl/{step}/gamma_used", loss.focusing, golden[f"{step}/gamma_used"])
        _, targets, _ = _recorded_step(golden, step)
        foreground = (targets < 40).sum().clamp(min=1)
        compare(METHOD, f"efl/{step}/normalizer", foreground, golden[f"{step}/normalizer"])
        _compare_step(loss, golden, step, step)
        for key, state in (
            ("pos_grad", loss.positive_gradient),
            ("neg_grad", loss.negative_gradient),
            ("pos_neg", loss.gradient_ratio),
        ):
            compare(METHOD, f"efl/{step}/{key}", state, golden[f"{step}/{key}"])


def test_golden_given_state():
    golden = load_golden("efl")
    loss = EqualizedFocalLoss(40)
    loss.positive_gradient.copy_(torch.from_numpy(golden["efl_state/init_pos_grad"]))
    loss.negative_gradient.copy_(torch.from_numpy(golden["efl_state/init_neg_grad"]))
    ratio = golden["efl_state/init_pos_neg"]
    compare(METHOD, "efl/efl_state/init_pos_neg", loss.gradient_ratio, ratio)
    _compare_step(loss, golden, "efl/s0", "efl_state")
