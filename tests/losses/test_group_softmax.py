"""BAGS: group tables, sampling, re-weighting, scores, and checkpoints of another layout."""

import io
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lt_detectron2.losses import GroupSoftmaxLoss, SoftmaxCrossEntropyLoss
from lt_detectron2.ops import softmax_ce
from lt_detectron2.statistics import ClassStatistics
from tests.golden import load_golden
from tests.parity import compare

from .factory import BATCH_KINDS, STATISTICS, K, batch, value_and_gradient

METHOD = "GroupSoftmaxLoss"
GOLDEN_CASES = ("b8", "b1", "b05", "b1_emptygroup", "b8_allbg", "b8_allfg", "b1000", "b05_single")


def _statistics(counts: list[int] | np.ndarray) -> ClassStatistics:
    counts = np.asarray(counts)
    return ClassStatistics(counts, np.minimum(counts, 1), 1)


def test_value_by_hand():
    # Groups {0} and {1, 2}; columns bg fg | others 0 | others 1 2. Zero logits cost log 2, log 2
    # and log 3. Region 0 is of class 1: group 0 takes both regions, group 1 has none of its own and
    # takes none, group 2 takes region 0 and, with beta 1, the background region as "others".
    loss = GroupSoftmaxLoss(3, _statistics([3, 30, 40]), edges=(10,), beta=1.0)
    assert loss.num_logits == 7
    value = loss(torch.zeros(2, 7), torch.tensor([1, 3]))
    assert_close(value.item(), math.log(2) + math.log(3))
    scores = loss.scores(torch.zeros(1, 7))
    assert_close(scores[0].tolist(), [1 / 4, 1 / 6, 1 / 6, 1 / 2])


@pytest.mark.parametrize("kind", BATCH_KINDS)
def test_groups_compute_the_regions_that_they_take(kind: str, monkeypatch: pytest.MonkeyPatch):
    loss, rows = GroupSoftmaxLoss(K, STATISTICS, beta=1.0), []
    shifted = softmax_ce._shifted
    monkeypatch.setattr(
        softmax_ce, "_shifted", lambda z, *args: rows.append(len(z)) or shifted(z, *args)
    )
    logits, targets = batch(loss, kind=kind)
    taken = loss.sampling_mask(loss.group_labels[targets])
    loss.sampling_mask = lambda group_labels: taken
    loss(logits, targets)
    assert rows == taken.sum(dim=0).tolist()
    assert sum(rows) < taken.numel()


def test_one_group_that_takes_all_is_two_softmaxes():
    loss = GroupSoftmaxLoss(K, STATISTICS, edges=(), beta=1e6)
    logits, targets = batch(loss)
    objectness, classes = logits[:, :2], logits[:, 2:]
    is_foreground = (targets < K).long()
    expected = SoftmaxCrossEntropyLoss(1)(objectness, is_foreground)
    with_others_first = torch.where(targets < K, targets + 1, 0)
    expected = expected + SoftmaxCrossEntropyLoss(K)(classes, with_others_first)
    assert_close(loss(logits, targets), expected)


@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0, 8.0])
@pytest.mark.parametrize("kind", BATCH_KINDS)
@pytest.mark.parametrize("reweighting", [False, True])
def test_equals_slow_reference(beta: float, kind: str, reweighting: bool):
    edges = (10, 100, 1000)
    loss = GroupSoftmaxLoss(K, STATISTICS, edges=edges, beta=beta, in_group_reweighting=reweighting)
    draws = torch.rand(30, 5)
    loss.uniform = lambda shape: draws
    logits, targets = batch(loss, regions=30, kind=kind)
    counts = STATISTICS.instance_count.tolist()
    bounds = [0, *edges, math.inf]
    groups = [
        [c for c in range(K) if low <= counts[c] < high] for low, high in zip(bounds, bounds[1:])
    ]
    z = logits.tolist()
    column, total = 0, 0.0
    for g, members in enumerate([["foreground"], *groups]):
        width = len(members) + 1
        labels, weights = [], []
        for t in targets.tolist():
            if g == 0:
                labels.append(int(t < K))
                weights.append(1.0)
                continue
            labels.append(members.index(t) + 1 if t in members else 0)
            mean = sum(1 / counts[c] for c in members) / len(members)
            reweigh = reweighting and t in members
            weights.append(min(max(1 / counts[t] / mean, 0.1), 5.0) if reweigh else 1.0)
        if g > 0:
            own = [i for i, label in enumerate(labels) if label > 0]
            others = sorted((i for i in range(30) if i not in own), key=lambda i: draws[i, g])
            taken = own + others[: int(len(own) * beta)]
            weights = [weight if i in taken else 0.0 for i, weight in enumerate(weights)]
        for row, label, weight in zip(z, labels, weights):
            part = row[column : column + width]
            entropy = math.log(sum(math.exp(value) for value in part)) - part[label]
            total += weight * entropy / max(sum(weights), 1)
        column += width
    assert column == loss.num_logits
    assert_close(loss(logits, targets).item(), total)


def test_group_without_own_regions_has_no_gradient():
    loss = GroupSoftmaxLoss(K, STATISTICS)
    logits, targets = batch(loss, kind="background")
    _, gradient = value_and_gradient(loss, logits, targets)
    assert gradient[:, :2].any() and not gradient[:, 2:].any()


def test_others_are_equally_likely():
    loss = GroupSoftmaxLoss(3, _statistics([3, 30, 40]), edges=(10,), beta=2.0)
    labels = loss.group_labels[torch.tensor([0, 1, 2, 3, 3, 3, 3, 3])]
    share = sum(loss.sampling_mask(labels).double() for _ in range(2000)) / 2000
    expected = torch.ones(8, 3, dtype=torch.float64)
    expected[1:, 1] = 2 / 7  # group 1 owns region 0
    expected[[0, 3, 4, 5, 6, 7], 2] = 4 / 6  # group 2 owns regions 1 and 2
    assert_close(share, expected, atol=0.06, rtol=0)


def test_empty_groups_and_classes_without_objects():
    loss = GroupSoftmaxLoss(2, _statistics([0, 5000]), in_group_reweighting=True)
    assert loss.group_sizes == (2, 2, 1, 1, 2) and loss.num_logits == 2 + 1 + 4 + 1
    logits = torch.randn(3, 8)
    value, gradient = value_and_gradient(loss, logits, torch.tensor([0, 1, 2]))
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    assert loss.scores(logits).shape == (3, 3)


def test_another_layout_is_refused():
    source = GroupSoftmaxLoss(K, STATISTICS)
    saved = io.BytesIO()
    torch.save(source.state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    GroupSoftmaxLoss(K, STATISTICS, beta=3.0).load_state_dict(state)
    recounted = ClassStatistics(
        STATISTICS.instance_count + 1, STATISTICS.image_count, STATISTICS.num_images
    )
    for other in (
        GroupSoftmaxLoss(K, STATISTICS, edges=(10, 100, 900)),
        GroupSoftmaxLoss(K, STATISTICS, edges=(10, 100)),
        GroupSoftmaxLoss(K, recounted),
    ):
        message = (
            r"checkpoint has the layout \(background group first, counts \w{16}, edges "
            r"\(10, 100, 1000\)\), this GroupSoftmaxLoss\(12 classes\) has .*: use the edges"
        )
        with pytest.raises(ValueError, match=message):
            torch.nn.Sequential(other).load_state_dict({f"0.{k}": v for k, v in state.items()})


def test_loaders_that_skip_other_shapes_still_see_the_layout():
    shapes = {
        GroupSoftmaxLoss(K, STATISTICS, edges=edges).layout.shape
        for edges in ((10,), (10, 100, 1000), tuple(range(1, 400)))
    }
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edges": (10, 10, 100)}, "edges must increase strictly"),
        ({"beta": -1.0}, "beta must be a finite number >= 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GroupSoftmaxLoss(K, STATISTICS, **arguments)


# ---- recorded outputs; label 0 and score 0 are the background there


def _background_last(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(labels == 0, 40, labels - 1))


def _golden_tables(loss: GroupSoftmaxLoss) -> dict[str, Tensor]:
    sizes = torch.tensor(loss.group_sizes)
    return {
        "label2binlabel": loss.group_labels.roll(1, dims=0).T,
        "pred_slice": torch.stack([sizes.cumsum(0) - sizes, sizes], dim=1),
    }


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("", (10, 100, 1000)),
        ("2bins_", (100,)),
        ("8bins_", (5, 10, 50, 100, 500, 1000, 5000)),
    ],
)
def test_golden_tables(name: str, edges: tuple[int, ...]):
    golden = load_golden("bags_c40")
    loss = GroupSoftmaxLoss(40, _statistics(golden["c40_counts"]), edges=edges)
    for key, table in _golden_tables(loss).items():
        compare(METHOD, f"bags_c40/{name}{key}", table, golden[f"c40_{name}{key}"])
    if not name:
        for group in range(4):
            members = (loss.class_group == group).nonzero().flatten() + 1
            key = f"c40_fg_split_g{group + 1}"
            compare(METHOD, f"bags_c40/{key}", members, golden[key])


def _compare_losses(
    loss: GroupSoftmaxLoss, golden: Mapping[str, np.ndarray], case: str, logits: Tensor
) -> None:
    """Replay a recorded mask: total, each group alone, and the gradient."""
    name = f"c40_{case}"
    targets = _background_last(golden[f"{name}_labels"])
    group_labels = loss.group_labels[targets]
    if f"{name}_binlabels" in golden:
        compare(METHOD, f"bags_c40/{case}_binlabels", group_labels.T, golden[f"{name}_binlabels"])
    # How many are taken, and so the normaliser, does not depend on the draw.
    mask = loss.sampling_mask(group_labels)
    assert (mask.sum(dim=0).numpy() == (golden[f"{name}_weights"] > 0).sum(axis=1)).all()
    recorded = torch.from_numpy(golden[f"{name}_weights"] > 0).T
    weights = recorded * loss.group_weights[targets]
    compare(METHOD, f"bags_c40/{case}_weights", weights.T, golden[f"{name}_weights"])
    average = weights.sum(dim=0).clamp(min=1)
    compare(METHOD, f"bags_c40/{case}_avg", average, golden[f"{name}_avg"])

    parts = []
    for group in range(recorded.shape[1]):
        alone = torch.zeros_like(recorded)
        alone[:, group] = recorded[:, group]
        loss.sampling_mask = lambda labels, mask=alone: mask
        parts.append(loss(logits, targets))
    compare(METHOD, f"bags_c40/{case}_loss_bins", torch.stack(parts), golden[f"{name}_loss_bins"])

    loss.sampling_mask = lambda labels: recorded
    for dtype, suffix in ((torch.float64, ""), (torch.float32, "_f32")):
        if f"{name}_loss{suffix}" not in golden:
            continue
        value, gradient = value_and_gradient(loss, logits.to(dtype), targets)
        for key, actual in (("loss", value), ("grad", gradient)):
            expected = golden[f"{name}_{key}{suffix}"]
            array = f"bags_c40/{case}_{key}{suffix}"
            compare(METHOD, array, actual, expected)


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_losses(case: str):
    golden = load_golden("bags_c40")
    loss = GroupSoftmaxLoss(
        40, _statistics(golden["c40_counts"]), beta=float(golden[f"c40_{case}_ratio"])
    )
    logits = torch.from_numpy(golden[f"c40_{case}_logits"]).double()
    _compare_losses(loss, golden, case, logits)


def test_golden_in_group_reweighting():
    golden = load_golden("bags_c40")
    loss = GroupSoftmaxLoss(
        40,
        _statistics(golden["c40_counts"]),
        beta=float(golden["c40_rw_ratio"]),
        in_group_reweighting=True,
    )
    for group in range(1, 5):
        weights = loss.group_weights[:-1, group][loss.class_group == group - 1]
        weights = torch.cat([loss.group_weights[-1:, group], weights])
        key = f"c40_rw_binweights_g{group}"
        compare(METHOD, f"bags_c40/{key}", weights, golden[key])
    _compare_losses(loss, golden, "rw", torch.from_numpy(golden["c40_rw_logits"]).double())


def test_golden_scores():
    golden = load_golden("bags_c40")
    loss = GroupSoftmaxLoss(40, _statistics(golden["c40_counts"]))
    first, second = (
        torch.from_numpy(golden[f"c40_infer_logits{suffix}"]).float() for suffix in ("", "_stage2")
    )
    for key, logits in (("infer_scores", first), ("infer_scores_stageavg", (first + second) / 2)):
        scores = loss.scores(logits).roll(1, dims=1)
        compare(METHOD, f"bags_c40/{key}", scores, golden[f"c40_{key}"])


def test_golden_layout_with_the_background_group_last():
    golden = load_golden("bags_eqlv2")
    counts = load_golden("bags_c40")["c40_counts"]
    # There, the background is label 40 and its group comes last, as (foreground, background).
    order = torch.tensor([45, 44, *range(44)])  # our column i is column order[i] there
    logits = torch.from_numpy(golden["c40_logits"]).double()[:, order]
    targets = torch.from_numpy(golden["c40_labels"])
    loss = GroupSoftmaxLoss(40, _statistics(counts))
    maps = loss.group_labels.roll(-1, dims=1).clone()
    maps[:, -1] = 1 - maps[:, -1]
    compare(METHOD, "bags_eqlv2/label_maps", maps.T, golden["c40_label_maps"])
    group_of = torch.cat([loss.class_group, torch.tensor([4])])
    compare(METHOD, "bags_eqlv2/group_ids", group_of, golden["c40_group_ids"])
    classes = [size - 1 for size in loss.group_sizes]
    compare(METHOD, "bags_eqlv2/n_cls_group", [*classes[1:], 1], golden["c40_n_cls_group"])
    compare(METHOD, "bags_eqlv2/scores", loss.scores(logits), golden["c40_scores"])
    for case, beta in (("b8", 8.0), ("b1", 1.0)):
        loss = GroupSoftmaxLoss(40, _statistics(counts), beta=beta)
        labels = loss.group_labels[targets].roll(-1, dims=1).clone()
        labels[:, -1] = 1 - labels[:, -1]
        compare(METHOD, f"bags_eqlv2/{case}_binlabels", labels.T, golden[f"c40_{case}_binlabels"])
        recorded = torch.from_numpy(golden[f"c40_{case}_weights"]).T.roll(1, dims=1)
        average = loss.sampling_mask(loss.group_labels[targets]).sum(dim=0).roll(-1)
        compare(METHOD, f"bags_eqlv2/{case}_avg", average, golden[f"c40_{case}_avg"])
        loss.sampling_mask = lambda labels, mask=recorded: mask
        value, gradient = value_and_gradient(loss, logits, targets)
        compare(METHOD, f"bags_eqlv2/{case}_loss", value, golden[f"c40_{case}_loss"])
        expected = golden[f"c40_{case}_grad"][:, order]
        compare(METHOD, f"bags_eqlv2/{case}_grad", gradient, expected)
