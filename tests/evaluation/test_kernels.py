"""The compiled loops against NumPy and torch, bit for bit."""

import numpy as np
import pytest
import torch

from lt_detectron2.evaluation import (
    Detections,
    GroundTruth,
    Protocol,
    groups_from_frequency,
    kernels,
    match,
    matching,
    metrics,
    pooled_precision,
    precision_recall,
)
from lt_detectron2.evaluation.annotations import POSITIVE, VERIFIED, positions_in
from lt_detectron2.evaluation.overlaps import options
from lt_detectron2.evaluation.pasting import encode_roi_masks
from lt_detectron2.evaluation.selection import Selection, by_score_in_groups

from .official import random_set

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
def test_assignment(seed, monkeypatch):
    monkeypatch.setattr(matching, "_CANDIDATES_AT_ONCE", 2 + seed % 9)
    cell, problem = random_problem(np.random.default_rng(seed))
    shape = (len(cell), 10, 4)
    ours, expected = (
        [np.zeros(shape, bool), np.zeros(shape, bool), np.zeros((len(problem[-1]), 10, 4), bool)]
        for _ in range(2)
    )
    kernels.assign(*problem, *ours)
    matching._assign_in_rounds(cell, *problem, *expected)
    for found, wanted in zip(ours, expected):
        np.testing.assert_array_equal(found, wanted)


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(30))
def test_options(seed, dtype, monkeypatch):
    """Few corners on a grid: equal IoUs, boxes that only touch, and more options than boxes."""
    monkeypatch.setattr("lt_detectron2.evaluation.overlaps._PAIRS_PER_CHUNK", 1 + seed)
    rng = np.random.default_rng(seed)

    def boxes(number):
        sides = rng.choice([-3, 0, 20.3, 30, 33.3, 60], (number, 2))
        return np.concatenate([rng.choice([0, 0.1, 3, 60], (number, 2)), sides], axis=1)

    size = int(rng.integers(0, 80))
    cell = np.sort(rng.integers(0, 12, size))  # of 6 images and 3 categories, 2 of them empty
    image, category = cell // 2, cell % 2
    crowd = rng.random(size) < rng.choice([0, 0.3])
    flags = np.full((6, 3), VERIFIED)
    flags[image, category] |= POSITIVE
    ground_truth = GroundTruth(
        *(np.arange(6), np.zeros((6, 2), np.int32), np.arange(3), ("",) * 3, ("",) * 3, flags),
        *(np.arange(size), image, category, boxes(size), np.ones(size), crowd, crowd),
    )
    columns = rng.integers(0, 6, 40), rng.integers(0, 3, 40), np.ones(40), boxes(40).astype(dtype)
    detections = Detections(*columns)
    rows = np.flatnonzero(rng.random(40) < 0.5)
    rows = rows[np.argsort(columns[0][rows], kind="stable")]
    selection = Selection(rows, columns[0][rows], columns[1][rows], np.ones(len(rows)), {})
    for lowest in (0.5, 1 - 1e-10, 1e-9):
        arguments = ground_truth, detections, selection, "bbox", lowest, 0.02
        monkeypatch.setenv("LT_DETECTRON2_NUMBA", "1")
        found = options(*arguments)
        monkeypatch.setenv("LT_DETECTRON2_NUMBA", "0")
        assert_same(found._asdict(), options(*arguments)._asdict())


@compiled
@pytest.mark.parametrize("seed", range(30))
def test_curves(seed):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.choice([0, 1, 3, 40], 6))])
    candidates = np.flatnonzero(rng.random(offsets[-1]) < rng.choice([0, 0.5, 1]))
    matched = rng.random((len(candidates), 10, 4)) < 0.6
    right = matched & (rng.random(matched.shape) < 0.7)
    category = np.searchsorted(offsets, candidates, side="right") - 1
    num_annotations = np.zeros((6, 4), dtype=np.int64)
    np.add.at(num_annotations, category, right.sum(axis=1).astype(np.int64))  # enough of them
    num_annotations[rng.random((6, 4)) < 0.2] = 0
    right &= num_annotations[category][:, None] > 0
    errs = rng.random((offsets[-1], 4)) < 0.7
    recalls = np.linspace(0, 1, rng.choice([1, 11, 101]))
    problem = offsets, errs, candidates, matched, right, num_annotations, recalls
    for found, wanted in zip(kernels.curves(*problem), metrics._curves(*problem), strict=True):
        np.testing.assert_array_equal(found, wanted)


PROTOCOLS = {
    "lvis": Protocol(),
    "few": Protocol(max_dets_per_image=10),
    "fixed": Protocol.lvis_fixed(6),
    "coco": Protocol.coco(3),
}


@compiled
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "boundary"])
@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("seed", range(8))
def test_whole_evaluation(name, iou_type, seed, monkeypatch):
    dataset, results = random_set(np.random.default_rng(seed), iou_type.replace("boundary", "segm"))
    make = GroundTruth.from_coco if name == "coco" else GroundTruth.from_lvis
    ground_truth = make(dataset, with_masks=iou_type != "bbox")
    detections = Detections.from_results(results) if results else Detections.empty()
    outcomes = []
    for switch in ("1", "0"):
        monkeypatch.setenv("LT_DETECTRON2_NUMBA", switch)
        outcomes.append(
            match(ground_truth, detections, iou_type=iou_type, protocol=PROTOCOLS[name])
        )
    matches = outcomes[0]
    assert_same(vars(matches), vars(outcomes[1]))
    folds = (
        lambda matches: vars(precision_recall(matches)),
        lambda matches: vars(precision_recall(matches.best_of_each_cell(1))),
        lambda matches: pooled_precision(matches, groups_from_frequency(ground_truth)),
    )
    for fold in folds:
        monkeypatch.setenv("LT_DETECTRON2_NUMBA", "1")
        found = fold(matches)
        monkeypatch.setenv("LT_DETECTRON2_NUMBA", "0")
        assert_same(found, fold(matches))


def assert_same(found, expected):
    """Of two dicts of arrays, bit for bit and in their types."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
        assert np.asarray(value).dtype == np.asarray(expected[name]).dtype, name


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
@pytest.mark.parametrize("repeats", [1, 100, 20_000])
def test_positions_of_ids(known, repeats):
    wanted = np.array([-8, -7, 0, 1, 3, 4, 6, 10**12, 10**13] * repeats)
    positions, found = positions_in(np.array(known), wanted)
    assert found.tolist() == [id in known for id in wanted.tolist()]
    assert [known[p] for p in positions[found]] == [id for id in wanted.tolist() if id in known]
