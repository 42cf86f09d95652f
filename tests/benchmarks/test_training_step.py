"""The benchmark of training steps trains the detectors that it says."""

from benchmarks import training_step


def test_every_loss_is_timed_in_a_training_step():
    methods = {case.sizes["method"] for case in training_step.CASES}
    expected = {training_step.CHANNELS_LAST, "GAPLoss", *training_step.loss_classes()}
    assert methods == expected - {training_step.BASELINE}


def test_kernels_are_measured_where_they_can_run():
    for method in ("SeesawLoss", "GAPLoss", training_step.CHANNELS_LAST):
        cfg = training_step.make_config(method, training_step.CPU_MODEL["config"], classes=60)
        assert cfg.LONG_TAIL.LOSS.IMPLEMENTATION == "auto"
