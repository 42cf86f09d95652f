"""The compiled loops against NumPy and torch, bit for bit."""

import numpy as np
import pytest
import torch

from lt_detectron2.evaluation import kernels, matching
from lt_detectron2.evaluation.annotations import positions_in
from lt_detectron2.evaluation.pasting import encode_roi_masks
from lt_detectron2.evaluation.selection import by_score_in_groups

compiled = pytest.mark.skipif(not kernels.available(), reason="numba is not installed")


def random_problem(rng):
    """Pairs of candidates and annotations of some cells, with equal IoUs and crowds."""
    cell, annotated, ious, count = [], [], [], []
    num_annotations = 0
    for number in range(rng.integers(1, 6)):
        size = int(rng.integers(1, 6))
        for _ in range(rng.integers(1, 7)):
            options = np.flatnonzero(rng.random(size) < 0.7)
            if not len(options):
                continue
            overlaps = rng.choice([0.5, 0.55, 0.6, 0.75, 0.9, 0.95], len(options))
            order = np.lexsort((options, overlaps))
            cell.append(number)
            annotated.extend(num_annotations + options[order])
            ious.extend(overlaps[order])
            count.append(len(options))
        num_annotations += size
    thresholds = np.linspace(0.5, 0.95, 10)
    counts = rng.random((num_annotations, 4)) < 0.7
    count = np.array(count, dtype=np.int64)
    problem = (
        np.array(annotated, dtype=np.int64),
        np.array(ious, dtype=float),
        np.cumsum(count) - count,
        count,
        thresholds,
        counts,
        ~counts.any(axis=1) & (rng.random(num_annotations) < 0.5),
    )
    return np.array(cell, dtype=np.int64), problem


@compiled
@pytest.mark.parametrize("seed", range(60))
def test_assignment(seed):
    cell, problem = random_problem(np.random.default_rng(seed))
    for ours, expected in zip(
        kernels.assign(*problem), matching._assign_in_rounds(cell, *problem), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


@compiled
@pytest.mark.parametrize("seed", range(10))
def test_pasting(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(40, 28, 28, generator=generator)
    masks[20:] = (masks[20:] > 0.5).float()
    corners = torch.rand(40, 2, generator=generator) * 90 - 15
    sides = torch.exp(4 * torch.rand(40, 2, generator=generator) - 1)  # 0.4 to 20 pixels
    sides[::4] *= 6
    boxes = torch.cat([corners, corners + sides], dim=1)
    found = encode_roi_masks(masks, boxes, 60, 70)
    monkeypatch.setenv("LT_DETECTRON2_NUMBA", "0")
    expected = encode_roi_masks(masks, boxes, 60, 70)
    assert expected.areas().sum() > 0
    assert [rle["counts"] for rle in found.rles()] == [rle["counts"] for rle in expected.rles()]


def test_they_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("LT_DETECTRON2_NUMBA", "0")
    assert not kernels.available()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 300])
def test_order_of_groups_and_scores(size, dtype):
    values = np.array([-2, -1.5, -0.0, 0.0, 1e-40, 0.25, 0.5, 3e38], dtype=dtype)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = rng.integers(0, 5, size)
        scores = rng.choice(values, size)
        expected = np.lexsort((-scores, group))
        np.testing.assert_array_equal(by_score_in_groups(group, scores), expected)


@pytest.mark.parametrize("known", [[3], [-7, 0, 4, 5], [1, 2, 10**12]])
@pytest.mark.parametrize("repeats", [1, 100])
def test_positions_of_ids(known, repeats):
    wanted = np.array([-8, -7, 0, 1, 3, 4, 6, 10**12, 10**13] * repeats)
    positions, found = positions_in(np.array(known), wanted)
    assert found.tolist() == [id in known for id in wanted.tolist()]
    assert [known[p] for p in positions[found]] == [id for id in wanted.tolist() if id in known]
