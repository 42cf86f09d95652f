"""What a trace of one image has recorded finds on others what the eager code does."""

import warnings

import pytest
import torch

from lt_detectron2.modeling import postprocess
from tests.modeling.test_postprocess import IMAGE, random_boxes, rows, scores_of

CLASSES = 12


def detect(boxes, scores, sizes, topk):
    found, regions = postprocess.fast_rcnn_inference(
        [boxes], [scores], [tuple(sizes.unbind())], 0.1, 0.5, topk
    )
    return found[0].pred_boxes.tensor, found[0].scores, found[0].pred_classes, regions[0]


def inputs(kind, regions, columns=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, regions, columns)
    return boxes, scores_of(kind, generator, regions, CLASSES), torch.tensor(IMAGE)


def columns_of(parts):
    boxes, scores, classes, regions = parts
    return torch.column_stack([scores, regions, classes, boxes]).double()


def assert_same(found, expected):
    """The same rows, but for the order of equal scores and what the cap cuts out of the last."""
    found, expected = columns_of(found), columns_of(expected)
    assert torch.equal(found[:, 0], expected[:, 0])
    if len(found):
        certain = found[:, 0] > found[-1, 0]
        assert rows(found[certain]) == rows(expected[certain])


@pytest.fixture(scope="module", params=[20, -1])
def traced(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = inputs("random", 40)
        function = lambda *tensors: detect(*tensors, request.param)  # noqa: E731
        return request.param, torch.jit.trace(function, example, check_trace=False)


@pytest.mark.parametrize("regions", [0, 1, 40, 300])
@pytest.mark.parametrize("kind", ["random", "ties", "peaked", "one_class", "all_equal", "nothing"])
def test_other_images(traced, kind, regions):
    topk, function = traced
    image = inputs(kind, regions, seed=regions)
    assert_same(function(*image), detect(*image, topk))


def test_more_candidates_are_looked_at_where_few_survive(traced):
    """The best 1000 candidates are one box, which survives once a class: the loop must go on."""
    topk, function = traced
    boxes, scores, sizes = inputs("random", 2000, seed=1)
    boxes[:1500] = torch.tensor([10.0, 10.0, 60.0, 60.0]).repeat(CLASSES)
    scores[:1500] = scores[:1500] * 0.1 + 0.9
    scores[1500:] *= 0.9
    found = function(boxes, scores, sizes)
    assert (found[3] < 1500).sum() == CLASSES < len(found[3])
    assert_same(found, detect(boxes, scores, sizes, topk))


def test_classes_are_kept_apart_without_losing_digits():
    """The same boxes in 1203 classes, near 1333 pixels: nothing is suppressed, nothing rounded."""
    classes = torch.arange(1203)
    boxes = torch.tensor([[1200.3, 700.1, 1332.9, 799.7]]).expand(1203, 4)
    apart = postprocess.traced_survivors(
        boxes, torch.rand(1203), classes, (800, 1333), 1203, 0.5, -1, 1000
    )
    assert sorted(apart.tolist()) == classes.tolist()
