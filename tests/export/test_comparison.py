"""Differences are seen, whatever the order of detections; rounding at the cut is none."""

import pytest
import torch

from lt_detectron2.errors import ExportError
from lt_detectron2.export.comparison import compare, difference

SIZE = (100, 200)


def detections(number=30, masks=False):
    generator = torch.Generator().manual_seed(0)
    boxes = 90 * torch.rand(number, 4, generator=generator)
    scores = torch.linspace(0.9, 0.1, number)
    parts = [boxes, scores, torch.arange(number) % 3]
    return [*parts, torch.rand(number, 4, 4, generator=generator)] if masks else parts


def changed(part, index, amount, **options):
    parts = [tensor.clone() for tensor in detections(**options)]
    parts[part][index] += amount
    return parts


def test_order_does_not_matter():
    parts = detections(masks=True)
    found = difference(parts, [part.flip(0) for part in parts], SIZE)
    assert (found.scores, found.boxes, found.masks, found.relative) == (0, 0, 0, 0)
    assert (found.size, found.detections, found.exported) == (SIZE, 30, 30)


def test_amounts():
    found = difference(detections(), changed(1, 4, 0.001), SIZE)
    assert found.scores == pytest.approx(0.001, rel=1e-3) and found.boxes == 0
    found = difference(detections(), changed(0, 4, 0.5), SIZE)
    assert found.boxes == pytest.approx(0.5, rel=1e-3) and found.scores == 0
    assert found.relative == pytest.approx(0.5 / 200, rel=1e-3)
    found = difference(detections(masks=True), changed(3, 4, 0.25, masks=True), SIZE)
    assert found.masks == found.relative == pytest.approx(0.25)


@pytest.mark.parametrize("swapped", [False, True])
def test_one_more_detection(swapped):
    pair = [detections(), [part[torch.arange(30) != 4] for part in detections()]]
    found = difference(*(reversed(pair) if swapped else pair), SIZE)
    assert found.relative > 0.01
    only = [part[torch.arange(30) % 3 != 1] for part in detections()]
    assert difference(detections(), only, SIZE).relative == float("inf")


def test_last_detection_may_be_another_one():
    other = changed(0, 29, 40.0)
    assert difference(detections(), other, SIZE).relative == 0
    assert difference(detections(), [part[:29] for part in other], SIZE).relative == 0
    # But not the only one that there is.
    assert difference(detections(1), changed(0, 0, 40.0, number=1), SIZE).boxes == 40


def test_empty():
    none = [part[:0] for part in detections()]
    assert difference(none, none, SIZE).relative == 0
    assert difference(none, detections(), SIZE).relative == float("inf")
    assert difference(detections(), none, SIZE).relative == float("inf")


def test_refusals():
    image = torch.zeros(3, *SIZE)
    assert len(compare(lambda _: detections(), lambda _: detections(), [image, image])) == 2
    with pytest.raises(ExportError, match=r"differs .* by 0.01 on an image of 100 x 200"):
        compare(lambda _: detections(), lambda _: changed(1, 4, 0.01), [image])
    for part in (0, 1, 3):
        nan = changed(part, 4, float("nan"), masks=True)
        with pytest.raises(ExportError, match="differs"):
            compare(lambda _: detections(masks=True), lambda _, nan=nan: nan, [image])
    none = [part[:0] for part in detections()]
    with pytest.raises(ExportError, match="finds nothing"):
        compare(lambda _: none, lambda _: none, [image])
