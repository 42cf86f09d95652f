"""The Open Images metric against recorded values, a slow reference and small cases."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from lt_detectron2.data.datasets import OpenImagesFiles, register_open_images
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.evaluation import Detections, EvaluationOptions, LongTailOpenImagesEvaluator
from lt_detectron2.evaluation.bootstrap import WeightedAP
from lt_detectron2.evaluation.challenge import (
    ancestor_table,
    challenge_ground_truth,
    expand_detections,
    match_challenge,
    quantile_groups,
)
from lt_detectron2.evaluation.groups import CategoryGroups
from lt_detectron2.statistics import ClassStatistics
from tests.golden import load_golden
from tests.losses.two_processes import run_in_two_processes
from tests.modeling.detectors import small_config
from tests.parity import compare

NAME = "open_images_golden_test"


@pytest.fixture
def golden():
    return load_golden("openimages_eval")


@pytest.fixture
def dataset(golden, tmp_path):
    """The recorded case as the files of the challenge, registered."""
    register_golden(golden, tmp_path)
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def register_golden(golden, folder):
    sizes = "ImageID,Width,Height\n" + "".join(f"{id},100,100\n" for id in golden["image_ids"])
    contents = {
        "boxes": golden["csv_boxes"].item(),
        "labels": golden["csv_labels"].item(),
        "classes": golden["csv_class_descriptions"].item(),
        "hierarchy": golden["hierarchy_json"].item(),
        "sizes": sizes,
    }
    paths = {name: folder / name for name in contents}
    for name, path in paths.items():
        path.write_text(contents[name])
    files = OpenImagesFiles(**{n: str(p) for n, p in paths.items()}, images=str(folder))
    register_open_images(NAME, files, only_with_boxes=False)


def golden_detections(golden) -> Detections:
    boxes = golden["det_box_xyxy"].copy()
    boxes[:, 2:] -= boxes[:, :2]
    images = np.searchsorted(golden["image_ids"], golden["det_image"])
    return Detections(images, golden["det_class"], golden["det_score"], boxes)


def parents_of(golden) -> dict[str, list[str]]:
    parents: dict[str, list[str]] = {}

    def visit(node, above):
        parents.setdefault(node["LabelName"], []).extend(above)
        for child in node.get("Subcategory", ()):
            visit(child, [node["LabelName"]])

    visit(json.loads(golden["hierarchy_json"].item()), [])
    return parents


@pytest.mark.parametrize("case", ["official", "group_weight0", "expanded_pred", "no_gt_expansion"])
def test_golden_settings(case, golden, dataset):
    parents = {} if case == "no_gt_expansion" else parents_of(golden)
    ancestors = ancestor_table(golden["classes"].tolist(), parents)
    ground_truth = challenge_ground_truth(
        DatasetCatalog.get(dataset), golden["classes"].tolist(), ancestors
    )
    detections = golden_detections(golden)
    if case == "expanded_pred":
        detections = expand_detections(detections, ancestors)
    outcomes = match_challenge(ground_truth, detections, groups_count=case != "group_weight0")
    ap = WeightedAP(outcomes)(np.ones(5))[0]
    expected = golden[f"{case}_ap"]
    np.testing.assert_array_equal(np.isnan(ap), np.isnan(expected))
    present = ~np.isnan(expected)
    method, tolerance = "LongTailOpenImagesEvaluator", 1e-12
    compare(
        method, f"openimages_eval/{case}_ap", ap[present], expected[present], tolerance=tolerance
    )
    compare(
        method, f"openimages_eval/{case}_map", np.nanmean(ap), golden[f"{case}_map"],
        tolerance=tolerance,
    )  # fmt: skip
    if f"{case}_num_gt" in golden:
        num_objects = np.bincount(outcomes.annotation_category, minlength=8)
        np.testing.assert_array_equal(num_objects, golden[f"{case}_num_gt"])


def test_golden_expansion(golden, dataset):
    ancestors = ancestor_table(golden["classes"].tolist(), parents_of(golden))
    np.testing.assert_array_equal(ancestors, golden["ancestors"])
    index = challenge_ground_truth(
        DatasetCatalog.get(dataset), golden["classes"].tolist(), ancestors
    )
    found = sorted(zip(index.image.tolist(), index.category.tolist(), index.crowd.tolist()))
    images = np.searchsorted(golden["image_ids"], golden["gt_expanded_image"])
    group_of = golden["gt_expanded_group_of"].astype(bool)
    assert found == sorted(
        zip(images.tolist(), golden["gt_expanded_class"].tolist(), group_of.tolist())
    )
    labelled = np.zeros((5, 8), dtype=bool)
    labelled[
        np.searchsorted(golden["image_ids"], golden["labels_expanded_image"]),
        golden["labels_expanded_class"],
    ] = True
    labelled[index.image, index.category] = True
    np.testing.assert_array_equal(index.cell_flags > 0, labelled)


def test_golden_groups(golden):
    toy = quantile_groups(golden["toy_instance_counts"], 4)
    for number, classes in enumerate(golden["toy_group_sorted_classes"]):
        assert set(toy.members(str(number + 1))) == set(classes)
    ap = golden["official_ap"]
    means = [np.nanmean(ap[toy.members(name)]) for name in toy.names]
    compare("LongTailOpenImagesEvaluator", "openimages_eval/toy_group_ap", means,
            golden["toy_group_ap"], tolerance=1e-12)  # fmt: skip
    groups = quantile_groups(golden["oi500_train_box_count"])
    for number, classes in enumerate(golden["oi500_groups"]):
        assert set(groups.members(str(number + 1))) == set(classes)


def model_outputs(golden):
    """What a model would have given for the recorded detections."""
    for image_id in golden["image_ids"].tolist():
        rows = np.flatnonzero(golden["det_image"] == image_id)
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.tensor(golden["det_box_xyxy"][rows]))
        instances.scores = torch.tensor(golden["det_score"][rows])
        instances.pred_classes = torch.tensor(golden["det_class"][rows])
        yield {"image_id": image_id}, {"instances": instances}


def run(evaluator, golden, part=slice(None)):
    evaluator.reset()
    for image, output in list(model_outputs(golden))[part]:
        evaluator.process([image], [output])
    return evaluator.evaluate()


def evaluate_half(rank, folder):
    golden = load_golden("openimages_eval")
    folder = Path(folder, str(rank))
    folder.mkdir()
    register_golden(golden, folder)
    return dict(run(LongTailOpenImagesEvaluator(NAME), golden, slice(rank, None, 2)))


def test_two_processes_give_the_numbers_of_one_to_both(golden, dataset, tmp_path):
    alone = dict(run(LongTailOpenImagesEvaluator(dataset), golden))
    for numbers in run_in_two_processes(evaluate_half, str(tmp_path)):
        np.testing.assert_equal(numbers, alone)


def test_golden_evaluator(golden, dataset, tmp_path):
    counts = golden["toy_instance_counts"]
    names = tuple(MetadataCatalog.get(dataset).thing_classes)
    statistics = ClassStatistics(counts, np.minimum(counts, 5), 5, names)
    folder = tmp_path / "inference"
    options = EvaluationOptions(results_file=True, bootstrap=20)
    evaluator = LongTailOpenImagesEvaluator(
        dataset, output_dir=str(folder), statistics=statistics, options=options
    )
    numbers = run(evaluator, golden)["bbox"]
    assert list(numbers) == ["AP50", "AP1", "AP2", "AP3", "AP4", "AP5"]
    assert numbers["AP50"] == pytest.approx(100 * golden["official_map"].item(), abs=1e-5)
    with open(folder / "per_category.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["boat"]["bbox_AP50"] == "n/a"
    assert rows["dog"]["mid"] == "/m/dog"
    assert (rows["animal"]["bbox_AP50"], rows["animal"]["bbox_recall"]) == ("62.5000", "75.0000")
    content = json.loads((folder / "results.json").read_text())
    assert content["results"]["bbox"] == numbers
    assert content["bootstrap"]["bbox"]["AP50"]["value"] == pytest.approx(numbers["AP50"])
    with open(folder / "challenge_results.csv") as file:
        first = next(csv.DictReader(file))
    assert first["LabelName"] == "/m/dog" and float(first["XMax"]) == pytest.approx(0.3)

    again = LongTailOpenImagesEvaluator(dataset, statistics=statistics)
    assert again.evaluate_file(str(folder / "detections.npz"))["bbox"] == numbers
    expanded = EvaluationOptions(expand_predictions=True)
    evaluator = LongTailOpenImagesEvaluator(dataset, options=expanded)
    numbers = run(evaluator, golden)["bbox"]
    assert numbers["AP50"] == pytest.approx(100 * golden["expanded_pred_map"].item(), abs=1e-5)


def test_golden_bad_input(golden, dataset, tmp_path):
    with pytest.raises(ValueError, match="for boxes, got tasks .*MASK_ON False"):
        LongTailOpenImagesEvaluator(dataset, ("bbox", "segm"))
    evaluator = LongTailOpenImagesEvaluator(dataset)
    instances = next(model_outputs(golden))[1]["instances"]
    with pytest.raises(ValueError, match="expected images of .*, got image 'Z'"):
        evaluator.process([{"image_id": "Z"}], [{"instances": instances}])
    path = tmp_path / "detections.npz"
    np.savez(path, **golden_detections(golden).columns())
    with pytest.raises(ValueError, match="they were made on other images"):
        evaluator.evaluate_file(str(path))
    with pytest.raises(ValueError, match="expected the detections.npz .*has not"):
        evaluator.evaluate_file(str(tmp_path / "results.json"))


def test_the_trainer_chooses_it_by_metadata(dataset, tmp_path):
    overrides = ("MODEL.MASK_ON", "False", "LONG_TAIL.STATISTICS", "")
    cfg = small_config(tmp_path, "LongTailROIHeads", "SoftmaxCrossEntropyLoss", *overrides)
    assert type(LongTailTrainer.build_evaluator(cfg, dataset)) is LongTailOpenImagesEvaluator


def slow_ap(records, detections, ancestors, category):
    """The rules in the order in which they are written, one detection at a time."""
    scored, num_objects = [], 0
    for row, record in enumerate(records):
        singles, groups = [], []
        for entry in record["annotations"]:
            if ancestors[entry["category_id"], category]:
                (groups if entry["is_group_of"] else singles).append(np.array(entry["bbox"]))
        num_objects += len(singles) + len(groups)
        known = {a for c in record["pos_category_ids"] for a in np.flatnonzero(ancestors[c])}
        known |= {c for a in record["neg_category_ids"] for c in np.flatnonzero(ancestors[:, a])}
        if not (singles or groups or category in known):
            continue
        mine = (detections.image_ids == row) & (detections.category_ids == category)
        rows = np.flatnonzero(mine)
        used, best_of_group = set(), {}
        for d in rows[np.argsort(-detections.scores[rows], kind="stable")]:
            x, y, w, h = detections.boxes[d]
            box, score = np.array([x, y, x + w, y + h]), detections.scores[d]

            def shared(other, box=box):
                low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
                return (high - low).clip(min=0).prod()

            def area(other):
                return (other[2] - other[0]) * (other[3] - other[1])

            ious = [shared(g) / (area(box) + area(g) - shared(g)) for g in singles]
            if ious and max(ious) >= 0.5 and int(np.argmax(ious)) not in used:
                used.add(int(np.argmax(ious)))
                scored.append((score, True))
                continue
            shares = [shared(g) / area(box) for g in groups]
            if shares and max(shares) >= 0.5:
                best_of_group.setdefault(int(np.argmax(shares)), score)
            else:
                scored.append((score, False))
        scored += [(score, True) for score in best_of_group.values()]
    if not num_objects:
        return np.nan
    right = np.array([r for _, r in sorted(scored, key=lambda pair: -pair[0])], dtype=float)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    best_later = [precision[i:].max() for i in range(len(right))]
    return sum(best_later[i] for i in range(len(right)) if right[i]) / num_objects


def random_case(rng):
    ancestors = ancestor_table(["a", "b", "c", "d"], {"b": ["a"], "c": ["b", "d", "x"], "x": ["a"]})
    records, detections = [], []
    for row in range(6):
        annotations = []
        for _ in range(rng.integers(0, 6)):
            low = rng.integers(0, 60, 2)
            annotations.append(
                {
                    "bbox": [*low.tolist(), *(low + rng.integers(10, 40, 2)).tolist()],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": int(rng.integers(4)),
                    "is_group_of": bool(rng.random() < 0.3),
                }
            )
        for _ in range(12):
            near = rng.random() < 0.8 and annotations
            box = np.array(
                annotations[rng.integers(len(annotations))]["bbox"] if near else [5, 5, 30, 30]
            )
            box[:2] += rng.integers(-4, 5, 2)
            box[2:] = np.maximum(box[2:] + rng.integers(-4, 5, 2), box[:2] + 1)
            detections.append((row, rng.integers(4), rng.random(), *box[:2], *(box[2:] - box[:2])))
        records.append(
            {
                "height": 100,
                "width": 100,
                "annotations": annotations,
                "pos_category_ids": [c for c in range(4) if rng.random() < 0.2],
                "neg_category_ids": [c for c in range(4) if rng.random() < 0.2],
            }
        )
    table = np.array(detections)
    return records, Detections(
        table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2], table[:, 3:]
    ), ancestors  # fmt: skip


@pytest.mark.parametrize("seed", range(15))
def test_equals_the_slow_reference(seed):
    records, detections, ancestors = random_case(np.random.default_rng(seed))
    index = challenge_ground_truth(records, list("abcd"), ancestors)
    ap = WeightedAP(match_challenge(index, detections))(np.ones(len(records)))[0]
    expected = [slow_ap(records, detections, ancestors, c) for c in range(4)]
    np.testing.assert_allclose(ap, expected, rtol=0, atol=1e-12)


def test_a_detection_that_takes_an_object_does_not_find_the_group_around_it():
    box = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {
        "height": 100,
        "width": 100,
        "annotations": [
            {**box, "bbox": [10, 10, 30, 30], "is_group_of": False},
            {**box, "bbox": [0, 0, 90, 90], "is_group_of": True},
        ],
        "pos_category_ids": [],
        "neg_category_ids": [],
    }
    index = challenge_ground_truth([record], ["a"], np.eye(1, dtype=bool))
    boxes = np.array([[10.0, 10, 20, 20], [50, 50, 20, 20], [10, 10, 20, 20]])
    detections = Detections(np.zeros(3, int), np.zeros(3, int), np.array([0.9, 0.8, 0.7]), boxes)
    outcomes = match_challenge(index, detections)
    assert outcomes.right.tolist() == [1, 1, 0]
    assert outcomes.wrong.tolist() == [0, 0, 0]


def test_no_detections_and_no_annotations():
    records, _, ancestors = random_case(np.random.default_rng(0))
    index = challenge_ground_truth(records, list("abcd"), ancestors)
    ap = WeightedAP(match_challenge(index, Detections.empty()))(np.ones(6))[0]
    assert (ap[index.instance_count > 0] == 0).all()
    for record in records:
        record["annotations"] = []
    index = challenge_ground_truth(records, list("abcd"), ancestors)
    assert np.isnan(WeightedAP(match_challenge(index, Detections.empty()))(np.ones(6))).all()


def test_groups_of_uneven_size():
    groups = quantile_groups(np.array([5, 1, 9]), 5)
    assert groups.labels() == ["2", "1", "3"]
    assert isinstance(groups, CategoryGroups)
    assert groups.rule == "training boxes 1-1 | 5-5 | 9-9 | none | none"
