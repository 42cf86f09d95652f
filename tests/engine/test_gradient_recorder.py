"""The record of gradients: its file, its hook, resuming, and what it logs."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lt_detectron2.engine.gradient_record import GradientRecord
from lt_detectron2.engine.gradient_recorder import GradientRecorder, build_gradient_recorder
from lt_detectron2.errors import ConfigError, UserError
from lt_detectron2.modeling.gradient_sums import KINDS
from lt_detectron2.statistics import ClassStatistics
from tests.modeling.detectors import NUM_CLASSES, STATISTICS, small_config


def test_ratio_and_share_by_hand():
    # One snapshot of two stages, two classes; rows positive, foreground, background.
    stages = np.array([[[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]], [[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]]])
    record = GradientRecord.empty(2, 2).with_snapshot(7, stages)
    assert record.iterations.tolist() == [7]
    np.testing.assert_allclose(record.ratio(), [[4 / 4, np.nan]])
    np.testing.assert_allclose(record.foreground_share(), [[1 / 4, np.nan]])


def test_file_and_its_beginning(tmp_path):
    record = GradientRecord.empty(1, 4)
    for iteration in (10, 20, 30):
        record = record.with_snapshot(iteration, np.full((1, 3, 4), float(iteration)))
    record.save(tmp_path / "gradients.npz")
    read = GradientRecord.load(tmp_path / "gradients.npz")
    assert np.array_equal(read.sums, record.sums) and read.iterations.tolist() == [10, 20, 30]
    assert read.until(25).iterations.tolist() == [10, 20]
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "gradients.npz"
    with pytest.raises(UserError, match="train with LONG_TAIL.GRADIENT_PERIOD"):
        GradientRecord.load(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected the gradients of a training in"):
        GradientRecord.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match="expected the gradients of a training in"):
        GradientRecord.load(path)


class Training:
    """As much of a trainer as the hook looks at; every step has a gradient of its own."""

    def __init__(self, folder, period, max_iter=7, num_stages=2):
        predictors = [SimpleNamespace(gradient_sums=None) for _ in range(num_stages)]
        self.model = nn.Linear(1, 1)
        self.model.roi_heads = SimpleNamespace(box_stages=[(None, p) for p in predictors])
        self.hook = GradientRecorder(self.model, STATISTICS, str(folder), period)
        self.hook.trainer = self
        self._trainer = SimpleNamespace()
        self.iter, self.max_iter, self.predictors = 0, max_iter, predictors
        self.scalars, self.images = {}, {}
        self.storage = SimpleNamespace(
            put_scalar=lambda name, value, **kwargs: self.scalars.update({name: value}),
            put_image=lambda name, picture: self.images.update({name: picture.shape}),
        )
        self.hook.before_train()

    def run(self, first, last):
        for self.iter in range(first, last):
            for stage, predictor in enumerate(self.predictors):
                predictor.gradient_sums._add(*step(self.iter, stage))
            self.hook.after_step()


def step(iteration, stage):
    generator = torch.Generator().manual_seed(10 * iteration + stage)
    targets = torch.randint(0, NUM_CLASSES + 1, (30,), generator=generator)
    return torch.randn(30, NUM_CLASSES, generator=generator), targets


def test_snapshots_are_sums_so_far(tmp_path):
    training = Training(tmp_path, period=3)
    training.run(0, 7)
    record = GradientRecord.load(tmp_path / "gradients.npz")
    assert record.iterations.tolist() == [3, 6, 7]  # the last one whatever the period
    for iteration, sums in zip(record.iterations, record.sums):
        expected = np.zeros((2, len(KINDS), NUM_CLASSES))
        for done in range(iteration):
            for stage in range(2):
                gradient, targets = step(done, stage)
                for row, target in zip(gradient.abs().tolist(), targets.tolist()):
                    for c in range(NUM_CLASSES):
                        kind = 0 if target == c else 2 if target == NUM_CLASSES else 1
                        expected[stage, kind, c] += row[c]
        np.testing.assert_allclose(sums, expected, rtol=1e-5)
    groups = STATISTICS.frequency_group().numpy()
    for group, name in enumerate(("rare", "common", "frequent")):
        median = np.median(record.ratio()[-1][groups == group])
        assert training.scalars[f"gradients/ratio_{name}"] == median
        assert 0 < training.scalars[f"gradients/foreground_share_{name}"] < 1


def test_resuming_goes_on(tmp_path):
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    Training(tmp_path / "whole", period=3).run(0, 7)
    first = Training(tmp_path / "parts", period=3)
    first.run(0, 5)
    checkpoint = first.hook.state_dict()  # after iteration 5, between snapshots
    first.run(5, 7)  # lost: its snapshots are of steps that are done again
    second = Training(tmp_path / "parts", period=3)
    second.iter = 4
    second.hook.load_state_dict(checkpoint)
    assert second.hook.record.iterations.tolist() == [3]
    second.run(5, 7)
    whole, parts = (
        GradientRecord.load(tmp_path / folder / "gradients.npz") for folder in ("whole", "parts")
    )
    assert parts.iterations.tolist() == whole.iterations.tolist()
    np.testing.assert_allclose(parts.sums, whole.sums)


def test_pictures_are_drawn_where_somebody_wants_them(tmp_path):
    from lt_detectron2.analysis.training_figures import draw_gradients, log_figures

    training = Training(tmp_path, period=7)
    training._hooks = [training.hook]
    training.cfg = SimpleNamespace(LONG_TAIL=SimpleNamespace(WRITERS=["json"]))
    log_figures(training)
    assert training.hook.draw is None
    training.cfg.LONG_TAIL.WRITERS = ["json", "tensorboard"]
    log_figures(training)
    assert training.hook.draw is draw_gradients
    training.run(0, 7)
    assert set(training.images) == {"gradients/ratio", "gradients/negative_share"}
    assert all(shape[0] == 3 and min(shape[1:]) > 200 for shape in training.images.values())


def test_what_cannot_record_is_refused(tmp_path):
    cfg = small_config(tmp_path)
    statistics = ClassStatistics([1], [1], 1)
    assert build_gradient_recorder(cfg, nn.Linear(1, 1), statistics) is None
    cfg = small_config(tmp_path, "LongTailROIHeads", "SeesawLoss", "LONG_TAIL.GRADIENT_PERIOD", "5")
    with pytest.raises(ConfigError, match="this model has none of ours"):
        build_gradient_recorder(cfg, nn.Linear(1, 1), statistics)
    cfg = small_config(
        tmp_path, "LongTailROIHeads", "SeesawLoss", "LONG_TAIL.GRADIENT_PERIOD", "-1"
    )
    with pytest.raises(ConfigError, match="must be 0 .off. or more, got -1"):
        build_gradient_recorder(cfg, nn.Linear(1, 1), statistics)
