"""The benchmark of losses compares what it says: each loss with its plain version."""

import pytest

from benchmarks import losses
from benchmarks.harness import Case
from lt_detectron2.ops import sigmoid_ce, softmax_ce


@pytest.mark.parametrize("name", losses.loss_names())
def test_loss_equals_its_plain_version(name: str):
    contest = losses.set_up(name, 200, 30, compiled=False)
    assert contest.check() <= losses.TOLERANCE
    assert list(contest.contestants) == [name, "cross_entropy", "plain", "copy"]


@pytest.mark.parametrize("name", losses.loss_names())
def test_kernels_are_timed_against_torch(name: str, monkeypatch: pytest.MonkeyPatch):
    asked = set()
    for operation in (sigmoid_ce, softmax_ce):
        monkeypatch.setattr(
            operation, "uses_triton", lambda name, *args, **kwargs: bool(asked.add(name))
        )
    monkeypatch.setattr(losses, "ON_GPU", True)  # but for the device of the tensors
    contestants = losses.set_up(name, 20, 10, compiled=False).contestants
    has_kernel = name != "SoftmaxCrossEntropyLoss"  # which is torch's own
    for contestant, implementation in ((name, "auto"), ("torch", "torch")):
        asked.clear()
        contestants[contestant]()
        assert asked == ({implementation} if has_kernel else set())


def test_targets_name_losses_that_exist():
    assert set(losses.AT_MOST) | set(losses.COMPILED) <= set(losses.loss_names())
    assert all(isinstance(case, Case) for case in losses.CASES)


def test_counts_are_distributed_as_in_lvis():
    counts = losses.lvis_like_statistics(1203).instance_count
    groups = [int(((counts >= low) & (counts < 10 * low)).sum()) for low in (1, 10, 100)]
    assert groups == pytest.approx([201, 413, 335], abs=3)
