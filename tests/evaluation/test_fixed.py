"""AP-fixed and AP-pool: the cap over the whole set, and what is done while the model runs."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch

from lt_detectron2.errors import UserError
from lt_detectron2.evaluation import (
    Detections,
    EvaluationOptions,
    GroundTruth,
    LongTailLVISEvaluator,
    Protocol,
    groups_from_frequency,
    match,
    pooled_precision,
    precision_recall,
)
from lt_detectron2.evaluation.inference import all_detections
from lt_detectron2.evaluation.prefilter import CategoryCap
from tests.modeling.detectors import batch, small_config, small_detector

from .evaluator_cases import model_outputs, register, run
from .official import official_evaluation, random_set
from .small_set import small_set

CAP = 6
FIXED = EvaluationOptions(ap_fixed=True, max_dets_per_category=CAP)


def best_of_categories(results, cap=CAP):
    """As the challenge's branch of the official package selects them."""
    by_category = defaultdict(list)
    for result in results:
        by_category[result["category_id"]].append(result)
    return [
        result
        for members in by_category.values()
        for result in sorted(members, key=lambda r: r["score"], reverse=True)[:cap]
    ]


def random_case(seed, iou_type="bbox"):
    dataset, results = random_set(np.random.default_rng(seed), iou_type)
    # The order of images is that of a results file written by an evaluator.
    return dataset, sorted(results, key=lambda r: r["image_id"])


@pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(1, 9))
def test_equals_official_on_the_best_of_each_category(seed, iou_type, tmp_path):
    dataset, results = random_case(seed, iou_type)
    precision, recall, _ = official_evaluation(
        dataset, best_of_categories(results), iou_type, None, tmp_path
    )
    matches = match(
        GroundTruth.from_lvis(dataset, with_masks=iou_type == "segm"),
        Detections.from_results(results),
        iou_type=iou_type,
        protocol=Protocol.lvis_fixed(CAP),
    )
    curves = precision_recall(matches)
    np.testing.assert_array_equal(curves.precision, precision)
    np.testing.assert_array_equal(curves.recall, recall)


def slow_pool(matches, members):
    """One list of detections of all members, cut by cut."""
    category = np.repeat(np.arange(len(matches.offsets) - 1), np.diff(matches.offsets))
    rows = np.flatnonzero(np.isin(category, members))
    rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
    total = matches.num_annotations[members, 0].sum()
    if not total:
        return np.nan
    position = {candidate: index for index, candidate in enumerate(matches.candidates)}
    values = []
    for threshold in range(10):
        true, false, points = 0, 0, []
        for row in rows:
            index = position.get(row)
            if index is not None and matches.right[index, threshold, 0]:
                true += 1
            elif index is None or not matches.matched[index, threshold, 0]:
                false += bool(matches.errs_unmatched[row, 0])
            points.append((true / total, true / max(true + false, 1)))
        for recall in np.linspace(0, 1, 101):
            values.append(max([p for r, p in points if r >= recall], default=0))
    return np.mean(values)


@pytest.mark.parametrize("seed", [4, 7])
def test_pool(seed):
    dataset, results = random_case(seed)
    index = GroundTruth.from_lvis(dataset)
    matches = match(index, Detections.from_results(results))
    groups = groups_from_frequency(index)
    found = pooled_precision(matches, groups)
    assert list(found) == ["APpool", "APpoolr", "APpoolc", "APpoolf"]
    pools = [np.arange(index.num_categories), *(groups.members(name) for name in "rcf")]
    expected = [slow_pool(matches, members) for members in pools]
    np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("compaction", [20, 1 << 19])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_evaluator(iou_type, compaction, tmp_path, monkeypatch):
    monkeypatch.setattr("lt_detectron2.evaluation.prefilter._FIRST_COMPACTION", compaction)
    dataset, results = random_case(14, iou_type)
    results = [r for r in results if r["category_id"] != 99]
    name, folder = register(dataset, tmp_path), tmp_path / "inference"
    # Images come in any order, and equal scores are then resolved by another one.
    pairs = model_outputs(
        {**dataset, "images": sorted(dataset["images"], key=lambda i: i["id"])}, results
    )
    numbers = run(LongTailLVISEvaluator(name, output_dir=str(folder), options=FIXED), pairs)
    task = f"{iou_type}_fixed"
    assert task in numbers and iou_type not in numbers
    written = np.float32([r["score"] for r in results]).tolist()
    same = [{**r, "score": score} for r, score in zip(results, written)]
    matches = match(
        GroundTruth.from_lvis(dataset, with_masks=True),
        Detections.from_results(best_of_categories(same)),
        iou_type=iou_type,
        protocol=Protocol(max_dets_per_image=None),
    )
    expected = precision_recall(matches).average_precision()
    assert numbers[task]["AP"] == pytest.approx(100 * expected, abs=1e-9)
    assert "APpool" in numbers[task]
    content = json.loads((folder / "results.json").read_text())
    assert content["protocol"]["max_dets_per_category"] == CAP
    saved = str(folder / "detections.npz")
    detections = Detections.load(saved)
    assert detections.kept.dropped["of unverified categories"] > 0
    if iou_type == "segm":
        detections.masks.check()  # those of unverified categories, which have none, are gone
    assert LongTailLVISEvaluator(name, options=FIXED).evaluate_file(saved) == numbers
    with pytest.raises(ValueError, match="the best 6 per category .*metric asks for the best 9"):
        more = EvaluationOptions(ap_fixed=True, max_dets_per_category=9)
        LongTailLVISEvaluator(name, options=more).evaluate_file(saved)
    with pytest.raises(ValueError, match="per image in verified .*metric asks for the best 300"):
        LongTailLVISEvaluator(name).evaluate_file(saved)


def test_thresholds_are_the_worst_of_the_best():
    cap = CategoryCap(2, 3)
    scores = np.float32([0.9, 0.1, 0.5, 0.5, 0.7])
    detections = Detections(
        np.array([1, 1, 2, 3, 3]), np.array([0, 0, 0, 0, 2]), scores, np.zeros((5, 4))
    )
    kept = cap.compact(detections)
    assert kept.scores.tolist() == scores[[0, 2, 4]].tolist()
    assert kept.image_ids.tolist() == [1, 2, 3]
    assert cap.thresholds.tolist() == [0.5, 0, 0]
    assert kept.kept.dropped == {"over the category's cap": 2}


@pytest.mark.parametrize("compaction", [2, 1 << 19])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.scores.fill_(np.nan), "expected finite scores, .* may have diverged"),
        (lambda found: found.scores[:1].fill_(np.inf), "expected finite scores"),
        (lambda found: found.pred_classes.add_(50), "predicts class 50: it was trained on other"),
    ],
)
def test_what_no_metric_takes_is_an_error(change, message, compaction, tmp_path, monkeypatch):
    monkeypatch.setattr("lt_detectron2.evaluation.prefilter._FIRST_COMPACTION", compaction)
    dataset, results = small_set()
    pairs = model_outputs(dataset, results)
    change(pairs[0][1]["instances"])
    evaluator = LongTailLVISEvaluator(
        register(dataset, tmp_path),
        options=EvaluationOptions(ap_fixed=True, max_dets_per_category=1),
    )
    with pytest.raises(UserError, match=message):
        run(evaluator, pairs)


def test_a_model_of_other_classes_does_not_run(tmp_path):
    cfg = small_config(tmp_path, "LongTailROIHeads", "SoftmaxCrossEntropyLoss")
    with (
        pytest.raises(UserError, match="the 8 classes of the evaluation set, it has 7: it was"),
        all_detections(small_detector(cfg), CategoryCap(CAP, 8)),
    ):
        pass


@pytest.mark.parametrize("heads", ["LongTailROIHeads", "LongTailCascadeROIHeads"])
def test_inference_without_cap_finds_all_that_the_metric_needs(heads, tmp_path):
    cfg = small_config(tmp_path, heads, "SoftmaxCrossEntropyLoss", "MODEL.MASK_ON", "False")
    model = small_detector(cfg).eval()
    images = [
        {key: value for key, value in image.items() if key != "instances"} for image in batch()
    ]

    def detections():
        with torch.no_grad():
            return [output["instances"] for output in model(images)]

    capped = detections()
    cap = CategoryCap(CAP, 7)
    with all_detections(model, cap):
        everything = detections()
        needed = everything[0].scores[everything[0].pred_classes == 2].sort().values[-3]
        cap.thresholds[2] = needed
        enough = detections()
    assert len(everything[0]) > len(capped[0])
    for full, less in zip(everything, enough):
        kept = (full.pred_classes != 2) | (full.scores >= needed)
        assert kept.sum() < len(full)
        assert torch.equal(less.scores, full.scores[kept])
        assert torch.equal(less.pred_boxes.tensor, full.pred_boxes.tensor[kept])
    # Afterwards all is as before.
    assert torch.equal(detections()[0].scores, capped[0].scores)
