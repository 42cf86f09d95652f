"""Gradient ratios and shares: numbers against loops over a made-up record, and what is refused."""

import numpy as np
import pytest

from lt_detectron2.analysis import gradient_ratio, negative_share
from lt_detectron2.analysis.recorded_gradients import read_run
from lt_detectron2.engine.gradient_record import GradientRecord
from lt_detectron2.errors import UserError
from lt_detectron2.statistics import ClassStatistics

from .figures import BY_FREQUENCY, STATISTICS, numbers, read_csv, write_counts


def write_run(folder, seed, statistics=STATISTICS):
    write_counts(folder, statistics)
    record = GradientRecord.empty(2, statistics.num_classes)
    sums = np.zeros((2, 3, statistics.num_classes))
    for iteration in (10, 20, 30):
        sums = sums + np.random.default_rng([seed, iteration]).random(sums.shape)
        record = record.with_snapshot(iteration, sums)
    record.save(folder / "gradients.npz")
    return record


@pytest.fixture
def runs(tmp_path):
    records = [write_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    return [read_run(tmp_path / name, name) for name in "ab"], records


def test_ratios(tmp_path, runs):
    runs, records = runs
    path = gradient_ratio.draw(runs, tmp_path / "ratio.png")
    rows = read_csv(path)
    assert [row["class"] for row in rows] == ["cat", "dog", "emu", "newt"]
    assert [row["group"] for row in rows] == ["frequent", "frequent", "common", "rare"]
    for name, record in zip("ab", records):
        (one, two) = record.sums[-1]  # of each stage
        expected = [
            (one[0, c] + two[0, c]) / (one[1:, c].sum() + two[1:, c].sum()) for c in BY_FREQUENCY
        ]
        assert numbers(rows, name) == pytest.approx(expected, rel=1e-5)
    with (tmp_path / "ratio_over_training.csv").open() as file:
        lines = file.read().splitlines()
    assert len(lines) == 1 + 2 * 3 * 3  # runs, snapshots, groups
    ratios = sorted(records[1].ratio()[1][c] for c in (1, 3))  # both frequent classes
    quartiles = [ratios[0] + share * (ratios[1] - ratios[0]) for share in (0.25, 0.5, 0.75)]
    (line,) = [line.split(",") for line in lines if line.startswith("b,20,frequent")]
    assert [float(number) for number in line[3:]] == pytest.approx(quartiles, rel=1e-5)


def test_a_class_without_gradient_is_left_out(tmp_path):
    record = write_run(tmp_path / "a", 0)
    record.sums[:, :, :, 0] = 0
    record.save(tmp_path / "a" / "gradients.npz")
    runs = [read_run(tmp_path / "a", "a")]
    groups = {group for _, group, *_ in gradient_ratio.course(runs[0])}
    assert groups == {"common", "frequent"}
    assert read_csv(gradient_ratio.draw(runs, tmp_path / "a.png"))[-1]["a"] == "nan"
    assert read_csv(negative_share.draw(runs, tmp_path / "b.png"))[-1]["a"] == "nan"


def test_shares(tmp_path, runs):
    runs, records = runs
    rows = read_csv(negative_share.draw(runs, tmp_path / "share.png"))
    for name, record in zip("ab", records):
        sums = record.sums[-1].sum(axis=0)
        expected = [sums[1, c] / (sums[1, c] + sums[2, c]) for c in BY_FREQUENCY]
        assert numbers(rows, name) == pytest.approx(expected, rel=1e-5)


def test_what_is_refused(tmp_path):
    write_counts(tmp_path / "plain")
    with pytest.raises(UserError, match="train with LONG_TAIL.GRADIENT_PERIOD"):
        read_run(tmp_path / "plain", "plain")
    GradientRecord.empty(1, 4).save(tmp_path / "plain" / "gradients.npz")
    with pytest.raises(UserError, match="has 0 snapshots of 4 classes, expected some of 4"):
        read_run(tmp_path / "plain", "plain")
    write_run(tmp_path / "other", 0, ClassStatistics([1, 2], [1, 2], 3))
    write_run(tmp_path / "one", 0)
    runs = [read_run(tmp_path / name, name) for name in ("one", "other")]
    for figure in (gradient_ratio, negative_share):
        with pytest.raises(UserError, match="other was trained on other class counts than one"):
            figure.draw(runs, tmp_path / "figure.png")
