"""Saved detections, looked at bit by bit: the same as when all are loaded, in less memory."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from lt_detectron2.evaluation import Detections
from lt_detectron2.evaluation.saved import SavedDetections

from .test_collected import assert_same, random_part


@pytest.fixture(params=[False, True])
def saved(request, tmp_path):
    """Detections of 30 images, none of the 8th, and the file with them, without and with masks."""
    rng = np.random.default_rng(3)
    images = np.sort(rng.integers(0, 30, 400))
    detections = replace(random_part(rng, 400, request.param), image_ids=images)
    detections = detections.take(images != 7)
    path = tmp_path / "detections.npz"
    np.savez(path, **detections.columns())
    return path, Detections(*(getattr(detections, name) for name in COLUMNS))


COLUMNS = ("image_ids", "category_ids", "scores", "boxes")


@pytest.mark.parametrize("at_once", [1, 50, 1000])
def test_parts_are_all_and_of_whole_images(saved, at_once):
    path, expected = saved
    parts = list(SavedDetections(path).parts(at_once))
    assert_same(Detections.concatenate(parts), expected)
    images = [set(part.image_ids.tolist()) for part in parts]
    assert sum(map(len, images)) == len(set(expected.image_ids.tolist()))
    assert len(parts) == {1: 29, 50: 7, 1000: 1}[at_once]


def test_some_images(saved):
    path, expected = saved
    found = SavedDetections(path).of_images([12, 7, 0, 99])
    rows = [np.flatnonzero(expected.image_ids == image) for image in (12, 0)]
    assert_same(found, expected.take(np.concatenate(rows)))


def test_nothing_found(tmp_path):
    path = tmp_path / "detections.npz"
    np.savez(path, **Detections.empty().columns())
    assert not list(SavedDetections(path).parts())
    assert not len(SavedDetections(path).of_images([3]))


def test_compressed_files_are_refused(saved):
    path, expected = saved
    np.savez_compressed(path, **expected.columns())
    with pytest.raises(ValueError, match="is compressed"):
        SavedDetections(path)


def test_memory_does_not_grow_with_the_file(tmp_path):
    path, number = tmp_path / "detections.npz", 400_000
    part = random_part(np.random.default_rng(0), number, with_masks=False)
    np.savez(path, **replace(part, image_ids=np.arange(number) // 300).columns())
    tracemalloc.start()
    try:
        saved = SavedDetections(path)
        assert len(saved.of_images(range(0, 1000, 100))) == 3000
        assert sum(len(part) for part in saved.parts(10_000)) == number
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20 < path.stat().st_size / 5
