"""The COCO evaluator against Detectron2's, and its metrics of the tail."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from lt_detectron2.evaluation import EvaluationOptions, LongTailCOCOEvaluator
from lt_detectron2.statistics import ClassStatistics

from .evaluator_cases import model_outputs, register, run
from .official import as_coco, official_coco_evaluation, random_set
from .small_set import AP_OF_CATEGORY_1, small_set

NAMES = "AP AP50 AP75 APs APm APl AR@1 AR@10 AR ARs ARm ARl".split()
"""The scalars of pycocotools, in its order."""


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [1, 4])
def test_equals_detectron2_and_pycocotools(iou_type, seed, tmp_path):
    dataset, results = random_set(np.random.default_rng(seed), iou_type)
    dataset = as_coco(dataset)
    name, pairs = register(dataset, tmp_path, "coco"), model_outputs(dataset, results)
    numbers = run(LongTailCOCOEvaluator(name), pairs)
    theirs = run(COCOEvaluator(name, output_dir=str(tmp_path / "d2"), use_fast_impl=False), pairs)
    assert numbers.keys() == theirs.keys()
    for task, values in theirs.items():
        for metric, value in values.items():
            found = numbers[task].get(metric, np.nan)
            assert found == pytest.approx(value, abs=1e-10, nan_ok=True)
        written = json.loads((tmp_path / "d2" / "coco_instances_results.json").read_text())
        _, _, official = official_coco_evaluation(dataset, written, task)
        found = [numbers[task].get(name, np.nan) for name in NAMES]
        np.testing.assert_allclose(found, 100 * official, rtol=0, atol=1e-10)


def test_tail_metrics(tmp_path, caplog):
    dataset, results = small_set()
    dataset = as_coco(dataset)
    statistics = ClassStatistics([5000, 400, 900], [2000, 300, 800], 3000, ("a", "b", "c"))
    folder = tmp_path / "inference"
    with caplog.at_level(logging.INFO, logger="lt_detectron2"):
        evaluator = LongTailCOCOEvaluator(
            register(dataset, tmp_path, "coco"), output_dir=str(folder), statistics=statistics
        )
        numbers = run(evaluator, model_outputs(dataset, results))["bbox"]
    # Other than in LVIS, image 3 was checked for category 1, and its detection there is an error.
    ap = 100 * (51 * 1 / 2 + 50 * 1 / 2) / 101
    assert ap < 100 * AP_OF_CATEGORY_1
    assert (numbers["APr"], numbers["APf"]) == (0, pytest.approx(ap))
    assert (numbers["AP_3"], numbers["AP_4"]) == (0, pytest.approx(ap))
    assert numbers["bAP"] == pytest.approx(ap / 2)
    assert "APc" not in numbers
    assert "thirds of the classes, r up to 300 training images, c up to 800" in caplog.text
    assert "| category 1 |     f |" in caplog.text
    content = json.loads((folder / "results.json").read_text())
    assert content["protocol"]["max_dets_per_cell"] == 100
    assert content["groups"][0]["rule"].startswith("thirds")


def test_without_statistics_there_are_no_groups(tmp_path, caplog):
    dataset, results = small_set()
    dataset = as_coco(dataset)
    with caplog.at_level(logging.INFO, logger="lt_detectron2"):
        numbers = run(
            LongTailCOCOEvaluator(register(dataset, tmp_path, "coco")),
            model_outputs(dataset, results),
        )["bbox"]
    assert not {"APr", "APc", "APf", "AP_1"} & numbers.keys()
    assert "come from nowhere" in caplog.text


def test_a_set_may_have_edges_of_its_own(tmp_path):
    """COCO-LT as SimCal makes it is measured in bins of 20, 400 and 8000, unless others are set."""
    dataset, results = small_set()
    dataset = as_coco(dataset)
    name, pairs = register(dataset, tmp_path, "coco"), model_outputs(dataset, results)
    statistics = ClassStatistics([15, 399, 7999], [9, 99, 999], 3000)

    def bins(options=None):
        evaluator = LongTailCOCOEvaluator(name, statistics=statistics, options=options)
        return [metric for metric in run(evaluator, pairs)["bbox"] if metric.startswith("AP_")]

    assert bins() == ["AP_2", "AP_3"]  # of 15 and of 399 objects; the third class is not in it
    edges = MetadataCatalog.get("coco_lt_simcal_val").instance_bin_edges
    MetadataCatalog.get(name).instance_bin_edges = edges
    assert bins() == ["AP_1", "AP_2"]
    assert bins(EvaluationOptions(instance_bins=(500,))) == ["AP_1"]
    assert bins(EvaluationOptions(instance_bins=())) == []
