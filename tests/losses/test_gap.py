"""GAP loss, AP loss, and the class logits that they take from each classification loss."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from lt_detectron2.losses import (
    EffectiveClassMarginLoss,
    EqualizationLossV2,
    GAPLoss,
    SeesawLoss,
)
from lt_detectron2.losses.base import ClassificationLoss
from lt_detectron2.ops import one_pass
from lt_detectron2.statistics import ClassStatistics
from tests.golden import load_golden
from tests.ops import ranking_reference
from tests.parity import compare
from tests.synchronisation import NoSynchronisation

from .factory import BATCH_KINDS, STATISTICS, K, cases, needs_new_compiler, state_of
from .two_processes import run_in_two_processes

METHOD = "GAPLoss"
RANDOM_SAMPLING = {"gamma": 1.0, "weight": 1.0}
AP_STYLE = {"ap_style": True, "category_specific": False, "statistic": False}
SWITCHES = {
    "default": {},
    "gamma 1, lambda 1": RANDOM_SAMPLING,
    "static": {"online": False},
    "no omega": {"statistic": False},
    "own counts": {"sync_counts": False},
    "foreground counts": {"exclude_foreground": False},
    "class agnostic": {"category_specific": False, "statistic": False},
    "AP": AP_STYLE,
    "AP as published": {**AP_STYLE, "delta": 1.0, "weight": 1.0},
}
each_setting = pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())


def _batch(
    regions: int = 24, kind: str = "mixed", seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(regions, K, generator=generator, dtype=torch.float64)
    targets = torch.tensor(BATCH_KINDS[kind](regions)[:regions], dtype=torch.int64)
    return logits.to(dtype), targets[torch.randperm(regions, generator=generator)]


def _run(gap: GAPLoss, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss, official value and gradient."""
    logits = logits.detach().requires_grad_()
    loss, value = gap(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), value, gradient


def _gap(**switches: object) -> GAPLoss:
    return GAPLoss(K, STATISTICS, **switches)


# ---- construction


def test_defaults_are_those_of_the_best_published_row():
    gap = GAPLoss(K)
    assert (gap.gamma, gap.weight, gap.delta) == (0.5, 0.1, 0.5)
    assert gap.category_specific and gap.statistic and gap.online and gap.exclude_foreground


def test_docstring_documents_each_hyper_parameter():
    parameters = inspect.signature(GAPLoss).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert len(names) == 9
    assert not [name for name in names if f"    {name}: " not in inspect.getdoc(GAPLoss)]


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"gamma": -1.0}, "gamma must be a finite number >= 0"),
        ({"weight": math.inf}, "weight must be a finite number >= 0"),
        ({"delta": 0.0}, "delta must be a finite number above 0, got 0.0"),
        ({"category_specific": False}, "switch statistic off too"),
        ({"ap_style": True}, "switch category_specific off"),
    ],
)
def test_settings_without_meaning_are_refused(switches: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        _gap(**switches)


def test_statistics_are_needed_for_static_weights_only():
    with pytest.raises(ValueError, match="pass its statistics, or leave online on"):
        GAPLoss(K, online=False)
    with pytest.raises(ValueError, match=f"expected statistics of {K + 1} classes, got {K}"):
        GAPLoss(K + 1, STATISTICS)
    with pytest.raises(ValueError, match="at least one class, got 0"):
        GAPLoss(0)
    assert GAPLoss(K, statistic=False, online=False).class_weight is None


def test_bad_input_is_refused():
    gap, targets = _gap(), torch.zeros(4, dtype=torch.int64)
    label = rf"GAPLoss\({K} classes\) expects"
    with pytest.raises(ValueError, match=rf"{label} class logits of shape \(4, {K}\), got \(4, 13"):
        gap(torch.zeros(4, K + 1), targets)
    with pytest.raises(ValueError, match=rf"{label} floating point logits, got torch.int64"):
        gap(torch.zeros(4, K, dtype=torch.int64), targets)
    with pytest.raises(ValueError, match=rf"{label} int64 targets of shape \(4,\)"):
        gap(torch.zeros(4, K), targets[:3])
    with pytest.raises(ValueError, match=rf"{label} targets in 0..{K} .*got 0..{K + 1}"):
        gap(torch.zeros(4, K), torch.tensor([0, 1, 2, K + 1]))


# ---- values


def test_value_by_hand():
    # Two classes, seen once and three times before this step: 2 to 4 with it, so that omega is
    # (4/3, 2/3) at gamma 1. Class 0's positive at 0 is level with one negative and below another:
    # error 1.5 / 2. Class 1's at 5 is above all. Half of that is the mean over the classes.
    gap = GAPLoss(2, gamma=1.0, weight=0.3)
    gap.region_count[:2] = torch.tensor([1.0, 3.0])
    logits = torch.tensor([[0.0, -9.0], [0.0, 5.0], [2.0, -9.0]])
    loss, value, gradient = _run(gap, logits, torch.tensor([0, 1, 2]))
    assert gap.region_count.tolist() == [2, 4, 1]
    assert_close(gap.class_weight, torch.tensor([4 / 3, 2 / 3], dtype=torch.float64))
    assert_close(value, torch.tensor(0.75 / 2))
    assert_close(loss, torch.tensor(0.3 * 4 / 3 * 0.75 / 2))
    expected = torch.tensor([[-0.75, 0.0], [0.25, 0.0], [0.5, 0.0]])
    assert_close(gradient, 0.3 * 4 / 3 / 2 * expected)


def _slow_reference(
    gap: GAPLoss, logits: Tensor, targets: Tensor, class_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows = (targets < K).nonzero().flatten()
    labels = targets[rows]
    positives = rows * K + labels
    share = torch.full((len(rows),), 1 / max(len(rows), 1), dtype=torch.float64)
    if gap.category_specific:
        present = len(set(labels.tolist()))
        for i, label in enumerate(labels):
            share[i] = 1 / (int((labels == label).sum()) * present)
    factor = gap.weight * share * class_weight[labels]
    if gap.ap_style:
        errors, gradient = ranking_reference.average_precision_errors(
            logits, positives, factor, delta=gap.delta
        )
    else:
        errors, gradient = ranking_reference.ranking_errors(
            logits,
            positives,
            labels if gap.category_specific else torch.zeros_like(labels),
            factor,
            delta=gap.delta,
            exclude_positives=gap.exclude_foreground,
        )
    return (factor * errors).sum(), (share * errors).sum(), gradient


@each_setting
def test_equals_slow_reference(switches: dict[str, object]):
    gap = _gap(**switches)
    count = torch.zeros(K, dtype=torch.float64)
    for seed, kind in enumerate(BATCH_KINDS):
        logits, targets = _batch(kind=kind, seed=seed)
        for target in targets[targets < K]:
            count[target] += 1
        class_weight = torch.ones(K, dtype=torch.float64)
        if gap.statistic:
            n = count if gap.online else STATISTICS.instance_count.double()
            class_weight = n.clamp(min=1) ** -gap.gamma
            class_weight = class_weight / class_weight.mean()
        expected = _slow_reference(gap, logits, targets, class_weight)
        assert_close(_run(gap, logits, targets), expected, rtol=1e-10, atol=1e-12)


def test_neutral_gamma_is_no_statistic():
    logits, targets = _batch()
    expected = _run(_gap(statistic=False), logits, targets)
    assert_close(_run(_gap(gamma=0.0), logits, targets), expected)


def test_value_does_not_know_the_weights():
    logits, targets = _batch()
    loss, value, gradient = _run(_gap(weight=0.1), logits, targets)
    doubled = _run(_gap(weight=0.2), logits, targets)
    assert_close(doubled, (2 * loss, value, 2 * gradient))
    assert not value.requires_grad


@each_setting
def test_gradient_sums_to_zero(switches: dict[str, object]):
    loss, _, gradient = _run(_gap(**switches), *_batch())
    assert_close(gradient.sum().item(), 0.0, rtol=0, atol=1e-14)
    if not switches.get("ap_style") and switches.get("exclude_foreground", True):
        assert_close(gradient.abs().sum(), 2 * loss)


@each_setting
def test_gradient_vanishes_where_the_ranking_is_perfect(switches: dict[str, object]):
    logits, targets = _batch()
    rows = (targets < K).nonzero().flatten()
    # The classes are level with each other: where foreground counts, that is an error.
    logits = logits.clamp(max=1.0)
    logits[rows, targets[rows]] = 3.0
    loss, value, gradient = _run(_gap(**switches), logits, targets)
    is_perfect = switches.get("exclude_foreground", True)
    assert is_perfect == (loss == 0) == (value == 0) == (not gradient.any())


@each_setting
def test_step_along_the_gradient_lowers_the_loss(switches: dict[str, object]):
    gap = _gap(**switches)
    gap(*_batch())
    gap.eval()
    logits, targets = _batch()
    before, _, gradient = _run(gap, logits, targets)
    after, _, _ = _run(gap, logits - 1e-2 * gradient / gradient.norm(), targets)
    assert after < before


@each_setting
def test_renaming_classes_changes_nothing(switches: dict[str, object]):
    order = torch.randperm(K)
    renamed_statistics = ClassStatistics(
        STATISTICS.instance_count[order], STATISTICS.image_count[order], STATISTICS.num_images
    )
    new_name = torch.cat([order.argsort(), torch.tensor([K])])
    gap, renamed = _gap(**switches), GAPLoss(K, renamed_statistics, **switches)
    for seed in range(2):
        logits, targets = _batch(seed=seed)
        loss, value, gradient = _run(gap, logits, targets)
        expected = (loss, value, gradient[:, order])
        assert_close(_run(renamed, logits[:, order], new_name[targets]), expected)


@each_setting
@pytest.mark.parametrize("regions", [0, 5])
def test_no_positive_costs_nothing_and_has_a_graph(switches: dict[str, object], regions: int):
    gap = _gap(**switches)
    logits, targets = _batch(regions, "background")
    logits.requires_grad_()
    loss, value = gap(logits, targets)
    assert loss == 0 and value == 0 and loss.requires_grad
    loss.backward()
    assert logits.grad.shape == (regions, K) and not logits.grad.any()


@each_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_logits_stay_finite(switches: dict[str, object], dtype: torch.dtype):
    gap = _gap(**switches)
    for seed, kind in enumerate(BATCH_KINDS):
        logits, targets = _batch(kind=kind, seed=seed, dtype=dtype)
        loss, value, gradient = _run(gap, 1e4 * logits.sign(), targets)
        assert torch.isfinite(loss) and 0 <= value <= 1 and torch.isfinite(gradient).all()


@each_setting
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(switches: dict[str, object], dtype: torch.dtype):
    gap = _gap(**switches).eval()
    logits, targets = _batch(dtype=dtype)
    expected = _run(gap, logits.float(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, value, gradient = _run(gap, logits, targets)
    assert (loss.dtype, value.dtype, gradient.dtype) == (torch.float32, torch.float32, dtype)
    assert_close((loss, value, gradient.float()), expected, rtol=0, atol=2e-3)
    assert_close((loss, value), expected[:2], rtol=0, atol=0)


def test_more_cells_than_half_precision_can_count():
    # 160,000 negatives above one positive: a sum of them overflows float16.
    logits, targets = torch.full((400, 400), 2.0), torch.full((400,), 400)
    logits[0, 7], targets[0] = -2.0, 7
    loss, value, gradient = _run(GAPLoss(400, statistic=False, weight=1.0), logits.half(), targets)
    error = 159_999 / 159_999.5
    assert_close((loss, value), (torch.tensor(error), torch.tensor(error)))
    assert_close(gradient[0, 7].float(), torch.tensor(-error), rtol=1e-3, atol=0)


# ---- state


def test_only_online_counts_are_state():
    assert list(_gap().state_dict()) == ["region_count"]
    assert not _gap(online=False).state_dict() and not _gap(statistic=False).state_dict()


def test_casting_the_model_leaves_the_counts_as_they_are():
    gap = _gap()
    gap.region_count += 2**12 + 1.0  # more than bfloat16 can count
    before = state_of(gap)
    assert_close(state_of(gap.bfloat16()), before, rtol=0, atol=0)


def test_only_training_counts():
    gap = _gap()
    gap(*_batch())
    before = state_of(gap)
    gap.eval()
    gap(*_batch(seed=1))
    gap.train()
    with torch.no_grad():
        gap(*_batch(seed=1))
    assert_close(state_of(gap), before, rtol=0, atol=0)


def test_saved_state_resumes_the_run():
    uninterrupted, resumed = _gap(), _gap()
    uninterrupted(*_batch(seed=5))
    resumed.load_state_dict(uninterrupted.state_dict())
    for seed in range(2):
        expected = _run(uninterrupted, *_batch(seed=seed))
        assert_close(_run(resumed, *_batch(seed=seed)), expected, rtol=0, atol=0)
    assert_close(state_of(resumed), state_of(uninterrupted), rtol=0, atol=0)


def test_nothing_of_a_batch_stays():
    gap = _gap()
    _run(gap, *_batch())
    assert not [name for name, item in vars(gap).items() if isinstance(item, Tensor)]
    assert not gap.region_count.requires_grad


PARTS = (
    (("mixed", 12), ("mixed", 9)),
    (("mixed", 12), ("background", 4)),
    (("mixed", 6), ("mixed", 0)),
)


def _parts(step: int) -> list[tuple[Tensor, Tensor]]:
    return [_batch(regions, kind, seed=9) for kind, regions in PARTS[step]]


def _linear() -> nn.Linear:
    layer = nn.Linear(K, K).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def _train(layer: nn.Linear, loss_of: Callable[[list[tuple[Tensor, Tensor]]], Tensor]) -> Tensor:
    """The weight after five steps on the parts of both processes, in turn."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(_parts(step % len(PARTS))).backward()
        optimizer.step()
    return layer.weight.detach()


def _in_process(rank: int) -> dict[str, Any]:
    gaps = [_gap(), _gap(sync_counts=False)]
    for step in range(len(PARTS)):
        for gap in gaps:
            gap(*_parts(step)[rank])
    layer, gap = _linear(), _gap(**RANDOM_SAMPLING)
    model = DistributedDataParallel(layer)

    def loss_of(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        features, targets = parts[rank]
        return gap(model(features), targets).loss

    return {"counts": [gap.region_count for gap in gaps], "weight": _train(layer, loss_of)}


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, Any]]:
    return run_in_two_processes(_in_process)


def test_two_processes_learn_with_the_counts_of_both(two_processes: list[dict[str, Any]]):
    """After five steps in float64; each ranks its regions, also one that has no object or none."""
    layer, gap = _linear(), _gap(**RANDOM_SAMPLING).eval()

    def loss_of(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        targets = torch.cat([targets for _, targets in parts])
        gap.region_count += torch.bincount(targets, minlength=K + 1)
        return sum(gap(layer(features), targets).loss for features, targets in parts) / len(parts)

    expected = _train(layer, loss_of)
    assert (expected - _linear().weight).abs().max() > 0.1
    for process in two_processes:
        assert_close(process["weight"], expected, rtol=1e-9, atol=1e-12)


def test_two_processes_count_as_one(two_processes: list[dict[str, Any]]):
    first, second = (process["counts"] for process in two_processes)
    one, alone = _gap(), [_gap(), _gap()]
    for step in range(len(PARTS)):
        logits, targets = zip(*_parts(step))
        one(torch.cat(logits), torch.cat(targets))
        for gap, part in zip(alone, _parts(step)):
            gap(*part)
    assert_close(first[0], one.region_count, rtol=0, atol=0)
    assert_close(second[0], one.region_count, rtol=0, atol=0)
    assert_close([first[1], second[1]], [gap.region_count for gap in alone], rtol=0, atol=0)


@each_setting
def test_training_never_waits_for_the_device(
    switches: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(one_pass, "looking_is_free", lambda tensor: False)  # as on a GPU
    monkeypatch.setattr("lt_detectron2.losses.gap.check_targets", lambda *_: None)
    gap = _gap(**switches)
    logits, targets = _batch()
    logits.requires_grad_()
    with NoSynchronisation():
        gap(logits, targets).loss.backward()


@needs_new_compiler
@each_setting
def test_compiles_without_a_graph_break(switches: dict[str, object]):
    gap, compiled = (_gap(**switches) for _ in range(2))
    torch._dynamo.reset()
    compiled.compile(fullgraph=True, backend="eager")
    logits, targets = _batch(dtype=torch.float32)
    assert_close(_run(compiled, logits, targets), _run(gap, logits, targets))
    assert_close(dict(compiled.named_buffers()), dict(gap.named_buffers()))


# ---- what each classification loss hands over


@pytest.mark.parametrize("make", cases().values(), ids=cases().keys())
def test_class_logits_are_what_raises_the_scores(make: Callable[..., ClassificationLoss]):
    loss = make()
    logits = torch.randn(K, loss.num_logits, dtype=torch.float64, requires_grad=True)
    before = loss.scores(logits.detach())
    class_logits = loss.class_logits(logits)
    assert class_logits.shape == (K, K)
    (direction,) = torch.autograd.grad(class_logits.diagonal().sum(), logits)
    changed = loss.class_logits(logits + direction) - class_logits > 0
    assert_close(changed, torch.eye(K, dtype=torch.bool))
    after = loss.scores(logits.detach() + direction)
    assert (after.diagonal() > before.diagonal()).all()


def test_class_logit_of_a_pair_of_columns_is_their_difference():
    loss = EqualizationLossV2(K, formulation="softmax_2c")
    logits = torch.randn(5, 2 * K + 2)
    assert_close(loss.class_logits(logits), logits[:, :K] - logits[:, K + 1 : -1])


@pytest.mark.parametrize("make", cases().values(), ids=cases().keys())
def test_added_to_each_loss_it_moves_class_logits_only(make: Callable[..., ClassificationLoss]):
    loss, gap = make(), _gap(**RANDOM_SAMPLING)
    logits = torch.randn(24, loss.num_logits, requires_grad=True)
    _, targets = _batch()
    class_logits = loss.class_logits(logits)
    (total,) = torch.autograd.grad(
        loss(logits, targets) + gap(class_logits, targets).loss, logits, retain_graph=True
    )
    (alone,) = torch.autograd.grad(make()(logits, targets), logits)
    ranked = _run(_gap(**RANDOM_SAMPLING), class_logits, targets)[2]
    (expected,) = torch.autograd.grad(class_logits, logits, ranked)
    assert_close(total, alone + expected)


# ---- parity


ROWS = {
    "row1": {"category_specific": False, "statistic": False},
    "row2": {"statistic": False, "exclude_foreground": False},
    "row3": {"online": False, "exclude_foreground": False},
    "row4": {"exclude_foreground": False},
    "row5": {"online": False},
    "row6": {},
}
"""Table A2 of the paper."""

COLUMNS = 40


def _golden_statistics(golden: Mapping[str, np.ndarray]) -> ClassStatistics:
    count = golden["static_counts"]
    return ClassStatistics(count, count, int(count.sum()))


def _golden_gap(golden: Mapping[str, np.ndarray], **switches: object) -> GAPLoss:
    delta = float(golden["delta"])
    return GAPLoss(COLUMNS, _golden_statistics(golden), delta=delta, **switches)


def _compare_scaled(array: str, actual: Tensor, expected: np.ndarray) -> None:
    scale = np.abs(expected).max() or 1.0
    compare(METHOD, array, actual / scale, expected / scale)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_golden_table_a2(row: str, gamma: float):
    golden = load_golden("rog")
    key = f"A2_{row}" if row in ("row1", "row2") else f"A2_{row}_g{gamma}"
    gap = _golden_gap(golden, gamma=gamma, weight=1.0, **ROWS[row])
    for step, name in enumerate(golden["step_names"]):
        logits = torch.from_numpy(golden["logits"][step])[:, :COLUMNS]
        _, value, gradient = _run(gap, logits, torch.from_numpy(golden["labels"][step]))
        # The official function is not called without a positive, and then nothing is recorded.
        compare(METHOD, f"rog/{key}_loss/{name}", value, np.nan_to_num(golden[f"{key}_loss"][step]))
        _compare_scaled(f"rog/{key}_grad/{name}", gradient, golden[f"{key}_grad"][step])
        if gap.statistic and gap.online:
            expected = golden["online_counts_after_step"][step]
            compare(METHOD, f"rog/{key}_counts/{name}", gap.region_count, expected)


BASES = {
    # Plain binary cross entropies over the classes and the background.
    "sigmoid": lambda golden: EqualizationLossV2(
        COLUMNS, reweight_positive=False, reweight_negative=False
    ),
    "ecm": lambda golden: EffectiveClassMarginLoss(COLUMNS, _golden_statistics(golden)),
    "seesaw": lambda golden: SeesawLoss(COLUMNS),
}


@pytest.mark.parametrize("base", BASES)
def test_golden_sequence_beside_a_classification_loss(base: str):
    # The shipped configs: lambda 0.1, gamma 1. What was recorded are the gradients of the ranking
    # part, which must be what the sum of both losses has over the classification loss alone.
    golden = load_golden("rog")
    loss, alone = (BASES[base](golden) for _ in range(2))
    gap = _golden_gap(golden, gamma=1.0, weight=0.1)
    for step, name in enumerate(golden["step_names"]):
        logits = torch.from_numpy(golden["logits"][step])[:, : loss.num_logits].requires_grad_()
        targets = torch.from_numpy(golden["labels"][step])
        total = loss(logits, targets) + gap(loss.class_logits(logits), targets).loss
        (gradient,) = torch.autograd.grad(total, logits)
        (without,) = torch.autograd.grad(alone(logits, targets), logits)
        expected = np.zeros(logits.shape)
        expected[:, :COLUMNS] = 0.1 * golden["A2_row6_g1.0_grad"][step]
        _compare_scaled(f"rog/{base} + row6/{name}", gradient - without, expected)
    for counts in (gap.region_count, getattr(loss, "region_count", gap.region_count)):
        expected = golden["online_counts_after_step"][-1]
        compare(METHOD, f"rog/{base} + row6/counts", counts, expected)


@pytest.mark.parametrize("base", BASES)
def test_golden_scores_beside_ranking(base: str):
    golden = load_golden("rog")
    loss = BASES[base](golden)
    for row, step in enumerate((0, 6)):
        logits = torch.from_numpy(golden["logits"][step])[:, : loss.num_logits]
        expected = golden[f"infer_{base}_steps0_6"][row]
        scores = loss.scores(logits)
        compare(METHOD, f"rog/infer_{base}_steps0_6/{step}", scores, expected)
