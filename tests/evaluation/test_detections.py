"""Columns of detections and masks."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from lt_detectron2.evaluation import Detections, RunLengthMasks
from lt_detectron2.files import replacing

from .official import random_set


def random_masks(number, height=31, width=43):
    generator = np.random.default_rng(0)
    masks = np.zeros((number, height, width), dtype=bool)
    for mask in masks:
        top, left = generator.integers(0, height), generator.integers(0, width)
        block = mask[top : top + 9, left : left + 12]
        block[...] = generator.random(block.shape) < 0.8
    masks[0] = False
    masks[1] = True
    masks[2, :, -1] = True
    return masks


def reference_codes(masks):
    return [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]


def test_masks_are_encoded_as_pycocotools_does():
    masks = random_masks(300)
    encoded = RunLengthMasks.encode(masks)
    assert [rle["counts"] for rle in encoded.rles()] == reference_codes(masks)
    # More than 255 at once: pycocotools would overflow.
    np.testing.assert_array_equal(encoded.areas(), masks.sum(axis=(1, 2)))
    np.testing.assert_array_equal(encoded.boxes()[1], [0, 0, 43, 31])
    assert len(RunLengthMasks.encode(masks[:0])) == 0


def test_masks_keep_their_codes_when_selected_joined_and_compacted():
    masks = random_masks(8)
    encoded = RunLengthMasks.encode(masks)
    rows = np.array([5, 1, 1, 0])
    joined = RunLengthMasks.concatenate([encoded.take(rows), encoded]).compact()
    expected = reference_codes(masks[rows]) + reference_codes(masks)
    assert [rle["counts"] for rle in joined.rles()] == expected
    assert joined.counts.tobytes() == b"".join(expected)


def assert_same(actual, expected):
    columns = expected.columns()
    assert actual.columns().keys() == columns.keys()
    for name, column in actual.columns().items():
        np.testing.assert_array_equal(column, columns[name])
        assert column.dtype == columns[name].dtype


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_columns_round_trip_through_a_file(iou_type, tmp_path):
    _, results = random_set(np.random.default_rng(3), iou_type)
    detections = Detections.from_results(results)
    path = tmp_path / "detections.npz"
    with replacing(str(path), "wb") as file:
        np.savez(file, **detections.columns())
    assert_same(Detections.load(str(path)), detections)
    assert (detections.masks is None) == (iou_type == "bbox")


def test_parts_join_in_order():
    _, results = random_set(np.random.default_rng(3), "segm")
    whole = Detections.from_results(results)
    parts = [whole.take(np.arange(5)), Detections.empty(), whole.take(np.arange(5, len(whole)))]
    assert_same(Detections.concatenate(parts), whole)
    assert len(Detections.concatenate([])) == 0


def test_bad_input(tmp_path):
    _, results = random_set(np.random.default_rng(3), "segm")
    with_masks = Detections.from_results(results)
    boxes = Detections(
        *(with_masks.columns()[n] for n in ("image_ids", "category_ids")),
        with_masks.scores,
        with_masks.boxes,
    )
    with pytest.raises(ValueError, match="masks for all images or for none, got them for 1 of 2"):
        Detections.concatenate([with_masks, boxes])
    with pytest.raises(ValueError, match="expected scores for each of 0 detections, got 1"):
        Detections(np.zeros(0), np.zeros(0), np.zeros(1), np.zeros((0, 4)))
    with pytest.raises(ValueError, match=r"expected boxes of shape \(N, 4\), got \(0, 5\)"):
        Detections(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 5)))
    with pytest.raises(ValueError, match="has neither 'bbox' nor 'segmentation', only"):
        Detections.from_results([{"image_id": 1, "category_id": 1, "score": 1.0}])
    np.savez(tmp_path / "other.npz", boxes=np.zeros(3))
    with pytest.raises(ValueError, match="it lacks .*'image_ids'.* pass the detections.npz"):
        Detections.load(str(tmp_path / "other.npz"))


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(str(path)) as file:
        file.write("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
