"""The benchmark of training steps trains the detectors that it says."""

import pytest
from torch import nn

from benchmarks import training_step


def test_every_loss_is_timed_in_a_training_step():
    methods = {case.sizes["method"] for case in training_step.CASES}
    expected = {*training_step.VARIANTS, "GAPLoss", *training_step.loss_classes()}
    assert methods == expected - {training_step.BASELINE}


def test_kernels_are_measured_where_they_can_run():
    for method in ("SeesawLoss", "GAPLoss", "channels_last"):
        cfg = training_step.make_config(method, training_step.CPU_MODEL["config"], classes=60)
        assert cfg.LONG_TAIL.LOSS.IMPLEMENTATION == "auto"


@pytest.mark.parametrize(
    "method, losses, error",
    [
        ("channels_last", (2.01, 2.5), 0.005),
        ("channels_last", (2.03, 2.0), AssertionError),
        ("SeesawLoss", (3.0, 2.0), None),
        ("SeesawLoss", (3.0, float("nan")), AssertionError),
    ],
)
def test_check_compares_what_is_to_be_equal(
    method: str, losses: tuple, error: object, monkeypatch: pytest.MonkeyPatch
):
    turns = iter([lambda: [*losses], lambda: [2.0, 2.0]])
    monkeypatch.setattr(training_step, "trainer", lambda *arguments: next(turns))
    check = training_step.set_up(method, **training_step.CPU_MODEL).check
    if error is AssertionError:
        with pytest.raises(AssertionError, match="loss"):
            check()
    else:
        assert check() == pytest.approx(error)


@pytest.mark.parametrize("method", training_step.VARIANTS)
def test_variant_has_the_losses_of_the_baseline(method: str, monkeypatch: pytest.MonkeyPatch):
    inductor = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: inductor(module, backend="eager"))
    contest = training_step.set_up(method, **{**training_step.CPU_MODEL, "images": 2})
    assert 0 <= contest.check() < 1e-3
