"""Rank errors of classes: against loops over scores, over a small detector, and what is refused."""

import numpy as np
import pytest
import torch

from lt_detectron2.analysis.score_ranks import class_errors, draw, errors_figure, score_regions
from lt_detectron2.errors import UserError
from tests.engine.small_set import register, unregister
from tests.modeling.detectors import NUM_CLASSES, small_config, small_detector

from .figures import BY_FREQUENCY, STATISTICS, numbers, read_csv

DATASET = "score_ranks_val"


def slow_errors(images, pool, num_classes):
    errors = {c: [] for c in range(num_classes)}
    for first in range(0, len(images), pool):
        cells = [
            (score, c if target == c else None)
            for scores, targets in images[first : first + pool]
            for row, target in zip(scores.tolist(), targets.tolist())
            for c, score in enumerate(row)
        ]
        for score, c in cells:
            if c is None:
                continue
            wrong = sum((s > score) + (s == score) / 2 for s, k in cells if k is None)
            right = sum((s > score) + (s == score) / 2 for s, k in cells if k == c)
            errors[c].append(wrong / (wrong + right))
    return [np.mean(of_class) if of_class else np.nan for of_class in errors.values()]


@pytest.mark.parametrize("pool", [1, 2, 5])
def test_errors_against_a_loop(pool):
    images = [
        # Few different scores, so that many are equal.
        (torch.randint(0, 6, (9, 4)).float() / 7, torch.randint(1, 5, (9,)))
        for _ in range(5)
    ]
    images[1] = (images[1][0], torch.full((9,), 4))  # background only
    errors = class_errors(iter(images), pool)
    np.testing.assert_allclose(errors, slow_errors(images, pool, 4), rtol=1e-6)
    assert np.isnan(errors[0]) and not np.isnan(errors[1:]).any()


def test_figure(tmp_path):
    errors = [np.array([1.0, 0.5, np.nan, 0.1]), np.array([0.6, 0.4, 0.2, 0.1])]
    rows = read_csv(draw(errors, ("before", "after"), STATISTICS, tmp_path / "ranks.png"))
    assert [row["class"] for row in rows] == ["cat", "dog", "emu", "newt"]
    assert numbers(rows, "after") == errors[1][BY_FREQUENCY].tolist()


def test_figure_of_one_detector():
    axes = errors_figure(np.array([1.0, 0.5, np.nan, 0.1]), STATISTICS).axes[0]
    dots = [group.get_offsets().tolist() for group in axes.collections[::2]]  # without lines
    assert dots == [[[2, 1.0]], [[300, 0.5], [500, 0.1]]]  # training images, error
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["rare: mean 1.00", "frequent: mean 0.30"]


def test_regions_of_a_run(tmp_path):
    register(DATASET, tmp_path)
    try:
        cfg = small_config(tmp_path, "LongTailCascadeROIHeads", "SeesawLoss").clone()
        cfg.defrost()
        cfg.DATASETS.TEST = (DATASET,)
        (tmp_path / "config.yaml").write_text(cfg.dump())
        with pytest.raises(UserError, match="has no model_final.pth"):
            score_regions(tmp_path, 3)
        torch.save({"model": small_detector(cfg).state_dict()}, tmp_path / "model_final.pth")
        images = score_regions(tmp_path, 3)
        assert len(images) == 3
        for (scores, targets), (again, _) in zip(images, score_regions(tmp_path, 3)):
            assert scores.shape == (len(targets), NUM_CLASSES) and torch.equal(scores, again)
            assert (targets < NUM_CLASSES).any() and (targets == NUM_CLASSES).any()
    finally:
        unregister(DATASET)
