"""Equality with the official `lvis` package and with hotcoco, whole arrays bit for bit."""

import json

import numpy as np
import pytest

from lt_detectron2.errors import UserError
from lt_detectron2.evaluation import (
    Detections,
    GroundTruth,
    Protocol,
    groups_from_frequency,
    match,
    precision_recall,
    summarize,
)
from lt_detectron2.evaluation.oracle import hotcoco_curves

from .official import official_evaluation, random_set

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")


def assert_equals_official(dataset, results, iou_type, cap, folder):
    ground_truth = GroundTruth.from_lvis(dataset, with_masks=iou_type == "segm")
    matches = match(
        ground_truth,
        Detections.from_results(results),
        iou_type=iou_type,
        protocol=Protocol(max_dets_per_image=cap),
    )
    curves = precision_recall(matches)
    numbers = summarize(curves, groups_from_frequency(ground_truth))
    precision, recall, official = official_evaluation(dataset, results, iou_type, cap, folder)
    np.testing.assert_array_equal(curves.precision, precision)
    np.testing.assert_array_equal(curves.recall, recall)
    assert numbers.keys() == official.keys()
    np.testing.assert_allclose(list(numbers.values()), list(official.values()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(40))
def test_random_federated_sets(iou_type, seed, tmp_path):
    rng = np.random.default_rng(seed)
    dataset, results = random_set(rng, iou_type)
    if not results:
        pytest.skip("the official package crashes without detections")
    cap = [300, 10, 25, None][seed % 4]
    assert_equals_official(dataset, results, iou_type, cap, tmp_path)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(12))
def test_hotcoco(iou_type, seed, tmp_path):
    pytest.importorskip("hotcoco")
    dataset, results = random_set(np.random.default_rng(seed), iou_type)
    detections = Detections.from_results(results)
    protocol = Protocol(max_dets_per_image=[300, 10, 25, None][seed % 4])
    path = tmp_path / "annotations.json"
    if any(entry.get("ignore") for entry in dataset["annotations"]):
        path.write_text(json.dumps(dataset))
        with pytest.raises(UserError, match="does not know annotations marked `ignore`"):
            hotcoco_curves(str(path), detections, iou_type, protocol)
    for entry in dataset["annotations"]:
        entry.pop("ignore", None)
    path.write_text(json.dumps(dataset))
    expected = hotcoco_curves(str(path), detections, iou_type, protocol)
    ground_truth = GroundTruth.from_lvis(dataset, with_masks=iou_type == "segm")
    matches = match(ground_truth, detections, iou_type=iou_type, protocol=protocol)
    curves = precision_recall(matches)
    np.testing.assert_array_equal(curves.precision, expected.precision)
    np.testing.assert_array_equal(curves.recall, expected.recall)
