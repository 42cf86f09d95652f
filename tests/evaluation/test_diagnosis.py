"""Kinds of errors against a loop over detections, and their costs against repaired detections."""

import numpy as np
import pytest

from lt_detectron2.evaluation import (
    Detections,
    GroundTruth,
    Outcomes,
    Protocol,
    match,
    precision_recall,
)
from lt_detectron2.evaluation.diagnosis import KINDS, calibration_error, diagnose
from lt_detectron2.evaluation.groups import CategoryGroups

from .official import as_coco, random_set

PROTOCOL = Protocol.coco(max_dets_per_cell=1000)


def random_case(seed):
    """An exhaustively annotated set without crowds, and detections as results, scores distinct."""
    rng = np.random.default_rng(seed)
    dataset, results = random_set(rng, "bbox")
    dataset = as_coco(dataset)
    for annotation in dataset["annotations"]:
        annotation.pop("ignore", None)
        annotation["iscrowd"] = 0
    known = {category["id"] for category in dataset["categories"]}
    results = [result for result in results if result["category_id"] in known]
    for result, score in zip(results, rng.permutation(len(results))):
        result["score"] = float(score + 1) / (len(results) + 1)
    return dataset, results


def evaluate(dataset, results):
    ground_truth = GroundTruth.from_coco(dataset)
    detections = Detections.from_results(results)
    matches = match(ground_truth, detections, protocol=PROTOCOL)
    return ground_truth, detections, matches


def ap50(dataset, results):
    _, _, matches = evaluate(dataset, results)
    return precision_recall(matches).average_precision(iou=0.5)


def iou(first, second):
    (x, y, w, h), (u, v, a, b) = first, second
    width = min(x + w, u + a) - max(x, u)
    height = min(y + h, v + b) - max(y, v)
    overlap = max(width, 0) * max(height, 0)
    return overlap / (w * h + a * b - overlap) if overlap else 0.0


def reference(dataset, results):
    """(kind or None, target or None) of each result, and the ids of missed annotations."""
    found = {}
    for row, result in sorted(enumerate(results), key=lambda item: -item[1]["score"]):
        options = [
            (iou(result["bbox"], a["bbox"]), number)
            for number, a in enumerate(dataset["annotations"])
            if a["image_id"] == result["image_id"]
            and a["category_id"] == result["category_id"]
            and number not in found
        ]
        best = max(options, default=(0, 0))
        if best[0] >= 0.5:
            found[best[1]] = row
    kinds = []
    for row, result in enumerate(results):
        if row in found.values():
            kinds.append((None, None))
            continue
        best = {True: (0.0, None), False: (0.0, None)}
        for number, annotation in enumerate(dataset["annotations"]):
            if annotation["image_id"] == result["image_id"]:
                own = annotation["category_id"] == result["category_id"]
                overlap = iou(result["bbox"], annotation["bbox"])
                if overlap > 0 and overlap >= best[own][0]:
                    best[own] = (overlap, number)
        (own, own_target), (other, other_target) = best[True], best[False]
        if 0.1 <= own < 0.5:
            kinds.append(("localization", own_target))
        elif other >= 0.5:
            kinds.append(("classification", other_target))
        elif own >= 0.5:
            kinds.append(("duplicate", None))
        elif other >= 0.1:
            kinds.append(("both", None))
        else:
            kinds.append(("background", None))
    targets = {target for _, target in kinds}
    everything = range(len(dataset["annotations"]))
    return kinds, [n for n in everything if n not in found and n not in targets], found


@pytest.mark.parametrize("seed", range(25))
def test_kinds_and_costs(seed):
    dataset, results = random_case(seed)
    ground_truth, detections, matches = evaluate(dataset, results)
    errors = diagnose(ground_truth, detections, matches)
    kinds, missed, found = reference(dataset, results)
    by_row = dict(zip(matches.rows.tolist(), errors.kind.tolist()))
    assert [kind for kind, _ in kinds] == [
        KINDS[by_row[row]] if by_row[row] >= 0 else None for row in range(len(results))
    ]
    assert np.count_nonzero(errors.missed) == len(missed) == errors.counts["missed"]

    before = ap50(dataset, results)
    for name in KINDS:
        annotations = dataset["annotations"]
        if name == "missed":
            repaired = results
            annotations = [a for n, a in enumerate(annotations) if n not in missed]
        else:
            repaired, done = [], set(found)
            order = sorted(range(len(results)), key=lambda row: -results[row]["score"])
            for row in order:
                kind, target = kinds[row]
                if kind != name:
                    repaired.append(results[row])
                elif target is not None and target not in done:
                    done.add(target)
                    box, category = (annotations[target][k] for k in ("bbox", "category_id"))
                    repaired.append(results[row] | {"bbox": box, "category_id": category})
        after = ap50(dataset | {"annotations": annotations}, repaired)
        assert errors.gains[name]["AP"] == pytest.approx(after - before, abs=1e-12, nan_ok=True)


def test_every_kind_occurs_in_the_cases():
    counts = dict.fromkeys(KINDS, 0)
    for seed in range(25):
        dataset, results = random_case(seed)
        for kind, number in diagnose(*evaluate(dataset, results)).counts.items():
            counts[kind] += number
    assert min(counts.values()) > 10, counts


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error(seed):
    dataset, results = random_case(seed)
    ground_truth, _, matches = evaluate(dataset, results)
    parity = np.arange(ground_truth.num_categories) % 2
    groups = CategoryGroups(("even", "odd", "none"), parity, "a test")
    found = calibration_error(Outcomes.from_matches(ground_truth, matches, groups), bins=4)
    kinds, _, _ = reference(dataset, results)
    position = {id: n for n, id in enumerate(ground_truth.category_ids.tolist())}
    for name, wanted in (("all", {0, 1}), ("even", {0}), ("odd", {1}), ("none", set())):
        members = [
            (result["score"], kind is None)
            for result, (kind, _) in zip(results, kinds)
            if position[result["category_id"]] % 2 in wanted
        ]
        assert found[name]["detections"] == len(members)
        if not members:
            assert np.isnan(found[name]["ECE"])
            continue
        error = 0
        for low in (0, 0.25, 0.5, 0.75):
            inside = [m for m in members if low <= m[0] < low + 0.25 or m[0] == low + 0.25 == 1]
            error += abs(sum(right - score for score, right in inside))
        assert found[name]["ECE"] == pytest.approx(error / len(members))
        assert found[name]["score"] == pytest.approx(np.mean([score for score, _ in members]))
        assert found[name]["precision"] == pytest.approx(np.mean([right for _, right in members]))


def test_nothing_detected():
    dataset, _ = random_case(0)
    ground_truth, detections, matches = evaluate(dataset, [])
    errors = diagnose(ground_truth, detections, matches)
    assert errors.counts["missed"] == len(dataset["annotations"])
    assert np.isnan(calibration_error(Outcomes.from_matches(ground_truth, matches))["all"]["ECE"])
