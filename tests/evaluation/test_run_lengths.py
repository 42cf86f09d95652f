"""Run lengths of many masks at once, against pycocotools one at a time."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.layers import paste_masks_in_image

from lt_detectron2.data import run_lengths
from lt_detectron2.evaluation import RunLengthMasks
from lt_detectron2.evaluation.boundary import boundaries
from lt_detectron2.evaluation.pasting import encode_roi_masks


def random_masks(rng, number=60, height=23, width=31):
    """Noise of any density, blocks, stripes, full and empty masks."""
    masks = rng.random((number, height, width)) < rng.random((number, 1, 1)) ** 3
    masks[0], masks[1] = False, True
    masks[2], masks[2, :, 4:9] = False, True
    masks[3, -1, -1], masks[4, 0, 0] = True, True
    return masks


def reference(masks):
    return [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def windows_of(masks, window):
    left, top, right, bottom = window
    bits = np.zeros((len(masks), right - left, bottom - top + 1), dtype=np.uint8)
    bits[:, :, :-1] = masks[:, top:bottom, left:right].transpose(0, 2, 1)
    sizes = np.tile(masks.shape[1:], (len(masks), 1))
    return bits.ravel(), np.tile(window, (len(masks), 1)), sizes


@pytest.mark.parametrize("seed", range(5))
def test_codes(seed):
    masks = random_masks(np.random.default_rng(seed))
    expected = reference(masks)
    window = np.array([0, 0, 31, 23])
    encoded = RunLengthMasks.from_windows(*windows_of(masks, window))
    assert [rle["counts"] for rle in encoded.rles()] == [rle["counts"] for rle in expected]
    encoded.check()
    runs, num_runs = run_lengths.decode(encoded.counts, encoded.lengths)
    codes, lengths = run_lengths.encode(runs, num_runs)
    assert codes.tobytes() == encoded.counts.tobytes()
    for mask, part in zip(masks, np.split(runs, np.cumsum(num_runs)[:-1])):
        np.testing.assert_array_equal(run_lengths.to_window(part, 23, 3, 20), mask.T[3:20])


@pytest.mark.parametrize("window", [(3, 5, 20, 23), (0, 0, 9, 23), (22, 0, 31, 8), (4, 4, 4, 9)])
def test_windows(window):
    masks = random_masks(np.random.default_rng(0))
    left, top, right, bottom = window
    inside = np.zeros_like(masks)
    inside[:, top:bottom, left:right] = masks[:, top:bottom, left:right]
    encoded = RunLengthMasks.from_windows(*windows_of(masks, np.array(window)))
    assert [r["counts"] for r in encoded.rles()] == [r["counts"] for r in reference(inside)]


def test_large_runs_and_nothing():
    masks = np.zeros((2, 3000, 2000), dtype=np.uint8)
    masks[0, 1500:, 700:] = 1
    masks[1, 2999, 1999] = 1
    expected = reference(masks)
    found = RunLengthMasks.from_rles(expected)
    found.check()
    runs, num_runs = run_lengths.decode(found.counts, found.lengths)
    assert run_lengths.encode(runs, num_runs)[0].tobytes() == found.counts.tobytes()


def random_roi_masks(seed, number=40, height=77, width=101):
    """Smooth and noisy masks in boxes that are inside, at the edges, tiny, or the whole image."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(number, 28, 28, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(masks[:, None], 9, stride=1, padding=4)[:, 0]
    masks = torch.where(torch.arange(number)[:, None, None] % 3 > 0, smooth * 1.05, masks)
    size = torch.tensor([width, height])
    corners = torch.rand(number, 2, 2, generator=generator) * size
    boxes = torch.cat([corners.min(dim=1).values, corners.max(dim=1).values], dim=1)
    boxes[0] = torch.tensor([0, 0, width, height])
    boxes[1] = torch.tensor([10.0, 0, 30, height])
    boxes[2] = torch.tensor([50.25, 20.5, 50.75, 20.75])
    boxes[3] = torch.tensor([width - 3.5, height - 2.5, width, height])
    masks[4], masks[5] = 0, 1
    return masks, boxes, height, width


@pytest.mark.parametrize("seed", range(4))
def test_pasted_masks_are_those_of_detectron2(seed):
    masks, boxes, height, width = random_roi_masks(seed)
    expected = reference(paste_masks_in_image(masks, boxes, (height, width)).numpy())
    encoded = encode_roi_masks(masks, boxes, height, width)
    assert [rle["counts"] for rle in encoded.rles()] == [rle["counts"] for rle in expected]
    assert encoded.sizes.tolist() == [[height, width]] * len(masks)


def test_no_masks_to_paste():
    assert len(encode_roi_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 10, 12)) == 0


@pytest.mark.parametrize("dilation", [0.001, 0.02, 0.08])
def test_boundaries(dilation):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    masks = np.zeros((30, 60, 80), dtype=np.uint8)
    for mask in masks[1:]:
        for _ in range(3):
            x, y = rng.integers(0, 70), rng.integers(0, 50)
            mask[y : y + rng.integers(1, 40), x : x + rng.integers(1, 60)] = 1
        mask[rng.random(mask.shape) < 0.002] = 0
    distance = max(1, round(dilation * 100))
    padded = [np.pad(mask, 1) for mask in masks]
    eroded = [cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance) for mask in padded]
    expected = reference([mask - inner[1:-1, 1:-1] for mask, inner in zip(masks, eroded)])
    found = boundaries(RunLengthMasks.from_rles(reference(masks)), dilation)
    assert [rle["counts"] for rle in found.rles()] == [rle["counts"] for rle in expected]
    assert len(boundaries(RunLengthMasks.empty())) == 0


def test_damaged_codes_are_refused():
    rles = reference(random_masks(np.random.default_rng(0)))
    RunLengthMasks.from_rles(rles).check()
    rles[7]["counts"] = rles[7]["counts"][:-2]
    with pytest.raises(ValueError, match="23 x 31 pixels in mask 7, found .* damaged"):
        RunLengthMasks.from_rles(rles).check()
