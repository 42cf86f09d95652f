"""Top-candidates-first NMS gives Detectron2's detections, whatever the scores are."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import fast_rcnn as stock

from lt_detectron2.modeling import postprocess

IMAGE = (120, 160)


def random_boxes(generator, regions, columns):
    corners = torch.rand(regions, columns, 2, generator=generator) * torch.tensor([150.0, 110.0])
    sizes = torch.rand(regions, columns, 2, generator=generator) * 60 - 2  # some have no area
    return torch.cat([corners - 5, corners - 5 + sizes], dim=2).flatten(1)


def scores_of(kind, generator, regions, classes):
    scores = torch.rand(regions, classes + 1, generator=generator)
    if kind == "ties":
        return (scores * 5).round() / 5
    if kind == "all_equal":
        return torch.full_like(scores, 0.5)
    if kind == "nothing":
        return torch.zeros_like(scores)
    if kind == "one_class":
        scores[:, 1:-1] = 0
    if kind == "peaked":  # one class owns the top candidates, and NMS leaves few of them
        scores[:, 0] = 0.9 + 0.1 * scores[:, 0]
        scores[:, 1:-1] *= 0.5
    return scores


def detections(inference, boxes, scores, threshold, topk, nms_threshold):
    found, regions = inference([boxes], [scores], [IMAGE], threshold, nms_threshold, topk)
    assert found[0].image_size == IMAGE
    columns = torch.column_stack(
        [found[0].scores, regions[0], found[0].pred_classes, found[0].pred_boxes.tensor]
    )
    return columns.double()  # (D, 7)


def assert_same(boxes, scores, threshold, topk, nms_threshold=0.5):
    """Equal to the last bit, but for the order of equal scores, which Detectron2 leaves open."""
    settings = (boxes, scores, threshold, topk, nms_threshold)
    actual = detections(postprocess.fast_rcnn_inference, *settings)
    expected = detections(stock.fast_rcnn_inference, *settings)
    assert torch.equal(actual[:, 0], expected[:, 0])
    if not len(actual):
        return
    # What the cap cuts out of the last group of equal scores is arbitrary too: compare that group
    # with everything Detectron2 would have kept.
    last = actual[:, 0] == actual[-1, 0]
    assert rows(actual[~last]) == rows(expected[~last])
    uncapped = detections(stock.fast_rcnn_inference, boxes, scores, threshold, -1, nms_threshold)
    assert rows(actual[last]) <= rows(uncapped)


def rows(columns):
    return {tuple(row) for row in columns.tolist()}


@pytest.mark.parametrize("kind", ["random", "ties", "all_equal", "nothing", "one_class", "peaked"])
@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("regions, classes", [(20, 7), (150, 40), (400, 12)])
def test_equals_detectron2(kind, agnostic, regions, classes):
    generator = torch.Generator().manual_seed(regions + classes)
    boxes = random_boxes(generator, regions, 1 if agnostic else classes)
    scores = scores_of(kind, generator, regions, classes)
    for topk in (10, 100, -1):
        assert_same(boxes, scores, threshold=1e-4, topk=topk)


def deltas_and_proposals(generator, regions, classes):
    deltas = torch.randn(regions, 4 * classes, generator=generator)
    return deltas, random_boxes(generator, regions, 1)


@pytest.mark.parametrize("classes, agnostic", [(7, False), (60, False), (40, True)])
def test_boxes_decoded_on_demand_equal_those_decoded_first(classes, agnostic):
    generator = torch.Generator().manual_seed(classes)
    deltas, proposals = deltas_and_proposals(generator, 200, 1 if agnostic else classes)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    boxes = transform.apply_deltas(deltas, proposals)
    lazy = postprocess.RegionBoxes(deltas, proposals, transform)
    assert torch.equal(lazy.all(), boxes)
    scores = torch.rand(200, classes + 1, generator=generator)
    for topk, threshold in [(10, 1e-4), (100, 0.5), (-1, 0.9)]:
        expected = detections(stock.fast_rcnn_inference, boxes, scores, threshold, topk, 0.5)
        actual = detections(postprocess.fast_rcnn_inference, lazy, scores, threshold, topk, 0.5)
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_non_finite_deltas(value):
    generator = torch.Generator().manual_seed(5)
    deltas, proposals = deltas_and_proposals(generator, 60, 30)
    deltas[3, 0] = deltas[5, 1] = deltas[7, 2] = deltas[9, 3] = value
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    lazy = postprocess.RegionBoxes(deltas, proposals, transform)
    boxes, scores = lazy.all(), torch.rand(60, 31, generator=generator)
    expected = detections(stock.fast_rcnn_inference, boxes, scores, 0.0, 20, 0.5)
    actual = detections(postprocess.fast_rcnn_inference, lazy, scores, 0.0, 20, 0.5)
    assert torch.equal(actual, expected)


def test_thresholds_of_classes():
    generator = torch.Generator().manual_seed(6)
    boxes, scores = random_boxes(generator, 300, 1), torch.rand(300, 41, generator=generator)
    assert_same(boxes, scores, threshold=torch.rand(40, generator=generator), topk=30)


def test_only_boxes_of_candidates_are_decoded():
    decoded = []

    class Spy(Box2BoxTransform):
        def apply_deltas(self, deltas, boxes):
            decoded.append(deltas.numel())
            return super().apply_deltas(deltas, boxes)

    generator = torch.Generator().manual_seed(7)
    deltas, proposals = deltas_and_proposals(generator, 300, 100)
    lazy = postprocess.RegionBoxes(deltas, proposals, Spy((10.0, 10.0, 5.0, 5.0)))
    scores = torch.rand(300, 101, generator=generator)
    assert len(detections(postprocess.fast_rcnn_inference, lazy, scores, 1e-4, 50, 0.5)) == 50
    assert sum(decoded) < deltas.numel() / 10


def test_many_candidates_are_not_all_examined(monkeypatch):
    examined = []
    nms_by_class = postprocess._nms_by_class

    def spy(boxes, *arguments):
        examined.append(len(boxes))
        return nms_by_class(boxes, *arguments)

    monkeypatch.setattr(postprocess, "_nms_by_class", spy)
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(generator, 300, 1), torch.rand(300, 101, generator=generator)
    assert_same(boxes, scores, threshold=1e-4, topk=50)
    assert examined and max(examined) < 300 * 100 / 10


def test_grows_until_enough_survive(monkeypatch):
    # 2000 copies of one box: NMS leaves one of them for each class, so the first guess is short.
    monkeypatch.setattr(postprocess, "EXHAUSTIVE_CANDIDATES", 20)
    monkeypatch.setattr(postprocess, "CANDIDATES_PER_DETECTION", 2)
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[10.0, 10, 50, 50]]).expand(400, 4).contiguous()
    scores = torch.rand(400, 6, generator=generator) * torch.tensor([1, 0.5, 0.2, 0.1, 0.05, 1])
    assert_same(boxes, scores, threshold=1e-4, topk=5)


def test_non_finite_regions_and_empty_images():
    generator = torch.Generator().manual_seed(2)
    boxes, scores = random_boxes(generator, 60, 1), torch.rand(60, 31, generator=generator)
    boxes[3, 0], scores[7, 2] = float("nan"), float("inf")
    assert_same(boxes, scores, threshold=0.0, topk=20)
    assert_same(torch.zeros(0, 4), torch.zeros(0, 31), threshold=0.0, topk=20)


def test_classes_without_any_candidate():
    assert_same(torch.zeros(5, 4), torch.zeros(5, 3), threshold=0.5, topk=10)
