"""From the model to the metric: filtering, small masks, saved detections, caches, interruption."""

import json
import logging

import numpy as np
import pytest
import torch

from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.evaluation import (
    Detections,
    EvaluationOptions,
    LongTailCOCOEvaluator,
    LongTailLVISEvaluator,
    load_ground_truth,
)
from lt_detectron2.evaluation.inference import ROI_MASKS, running_for
from tests.modeling.detectors import batch, small_config, small_detector

from .evaluator_cases import model_outputs, register, run
from .official import random_set
from .small_set import category, image, small_set

SEED = 14


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_what_is_filtered_out_does_not_matter(iou_type, tmp_path):
    dataset, results = random_set(np.random.default_rng(SEED), iou_type)
    name, pairs = register(dataset, tmp_path), model_outputs(dataset, results)
    keep_all = EvaluationOptions(keep_unverified=True)
    outcomes = []
    for folder, options in (("all", keep_all), ("some", None)):
        evaluator = LongTailLVISEvaluator(
            name, output_dir=str(tmp_path / folder), max_dets_per_image=9, options=options
        )
        outcomes.append(run(evaluator, pairs))
    assert outcomes[0] == outcomes[1]
    every, some = (Detections.load(str(tmp_path / f / "detections.npz")) for f in ("all", "some"))
    assert len(some) < len(every)
    assert some.kept.dropped["of unverified categories"] == len(every) - len(some)


def test_saved_detections_are_as_good_as_the_model(tmp_path):
    dataset, results = random_set(np.random.default_rng(SEED), "segm")
    name, folder = register(dataset, tmp_path), tmp_path / "inference"
    options = EvaluationOptions(results_file=True, keep_unverified=True)
    evaluator = LongTailLVISEvaluator(name, output_dir=str(folder), options=options)
    numbers = run(evaluator, model_outputs(dataset, results))
    first = (folder / "results.json").read_text()
    # In the folder of the run itself: the file that is read stays.
    saved = str(folder / "detections.npz")
    assert evaluator.evaluate_file(saved) == numbers
    assert (folder / "results.json").read_text() == first
    (tmp_path / "link").symlink_to(folder)
    for way in (tmp_path / "link", folder / ".." / folder.name):
        assert evaluator.evaluate_file(str(way / "detections.npz")) == numbers
        assert (folder / "detections.npz").is_file()
    again = LongTailLVISEvaluator(name).evaluate_file(str(folder / "lvis_instances_results.json"))
    for task, values in numbers.items():
        assert again[task] == pytest.approx(values, abs=1e-9)
    # Without a filter, a lower cap can be had from the same file.
    few = LongTailLVISEvaluator(name, max_dets_per_image=5)
    assert few.evaluate_file(saved) == run(few, model_outputs(dataset, results))
    with pytest.raises(ValueError, match="the best 300 per image, the metric asks for all"):
        LongTailLVISEvaluator(name, max_dets_per_image=-1).evaluate_file(saved)


def test_filtered_detections_serve_only_what_they_were_filtered_for(tmp_path):
    dataset, results = random_set(np.random.default_rng(SEED), "bbox")
    name, folder = register(dataset, tmp_path), tmp_path / "inference"
    numbers = run(
        LongTailLVISEvaluator(name, output_dir=str(folder)), model_outputs(dataset, results)
    )
    saved = str(folder / "detections.npz")
    assert LongTailLVISEvaluator(name).evaluate_file(saved) == numbers
    with pytest.raises(ValueError, match="best 300 per image in verified .*asks for the best 10"):
        LongTailLVISEvaluator(name, max_dets_per_image=10).evaluate_file(saved)
    dataset["images"][0]["neg_category_ids"] = []
    (tmp_path / "other").mkdir()
    other = register(dataset, tmp_path / "other")
    with pytest.raises(ValueError, match="kept for other annotations, .*KEEP_UNVERIFIED True"):
        LongTailLVISEvaluator(other).evaluate_file(saved)


def test_predictions_files_that_are_none(tmp_path):
    dataset, results = small_set()
    evaluator = LongTailLVISEvaluator(register(dataset, tmp_path))
    path = tmp_path / "results.json"
    for content, message in (
        ("", "a results file is a JSON list, this one starts with ''"),
        ('{"images": []}', "is a JSON list, this one starts with"),
        (json.dumps(results)[:-20], "it ends or is damaged in or after result 2: .*save it again"),
        ("[1, 2]", "result 0 is 1, expected an object: remove it"),
        (
            json.dumps([*results, {"image_id": 1}]),
            "result 4 lacks .*'bbox', 'category_id', 'score'",
        ),
        (json.dumps([{**results[0], "image_id": 77}]), "1 for unknown image ids such as .77"),
        (json.dumps([{**results[0], "score": float("nan")}]), "expected finite scores"),
        (json.dumps([{**results[0], "bbox": [0, 0, float("inf"), 1]}]), "expected finite boxes"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            evaluator.evaluate_file(str(path))
    path.write_text("[]")
    assert evaluator.evaluate_file(str(path))["bbox"]["AP"] == 0
    with pytest.raises(ValueError, match="absent.npz, found no such file: .*inference folder"):
        evaluator.evaluate_file(str(tmp_path / "absent.npz"))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="expected saved detections in .*text.npz"):
        evaluator.evaluate_file(str(tmp_path / "text.npz"))


def test_negative_boxes_match_nothing_and_are_mentioned(tmp_path, caplog):
    dataset, results = small_set()
    evaluator = LongTailLVISEvaluator(register(dataset, tmp_path))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    before = evaluator.evaluate_file(str(path))
    path.write_text(json.dumps([*results, {**results[0], "bbox": [50, 50, -40, 40]}]))
    assert evaluator.evaluate_file(str(path)) == before
    assert "1 boxes have a negative width or height (the first is" in caplog.text


def test_large_results_files_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("lt_detectron2.evaluation.detections._CHARACTERS_AT_ONCE", 50)
    monkeypatch.setattr("lt_detectron2.evaluation.detections._RESULTS_AT_ONCE", 7)
    _, results = random_set(np.random.default_rng(SEED), "segm")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results, indent=1))
    parts, whole = Detections.load(str(path)), Detections.from_results(results)
    for name, column in whole.columns().items():
        np.testing.assert_array_equal(parts.columns()[name], column)
    monkeypatch.setattr("lt_detectron2.evaluation.detections._MAX_CHARACTERS_OF_A_RESULT", 100)
    path.write_text("[{]" + " " * 400)
    with pytest.raises(ValueError, match="it is no JSON"):
        Detections.load(str(path))


def test_an_interrupted_evaluation_leaves_nothing_to_trust(tmp_path):
    dataset, results = small_set()
    folder = tmp_path / "inference"
    evaluator = LongTailLVISEvaluator(register(dataset, tmp_path), output_dir=str(folder))
    pairs = model_outputs(dataset, results)
    run(evaluator, pairs)
    (folder / "notes.txt").write_text("of somebody else")
    evaluator.reset()
    evaluator.process(*([part] for part in pairs[0]))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_an_error_while_measuring_leaves_only_the_detections(tmp_path, monkeypatch):
    dataset, results = small_set()
    folder = tmp_path / "inference"
    evaluator = LongTailLVISEvaluator(register(dataset, tmp_path), output_dir=str(folder))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lt_detectron2.evaluation.measure.precision_recall", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(evaluator, model_outputs(dataset, results))
    assert [path.name for path in folder.iterdir()] == ["detections.npz"]


def test_index_is_cached_by_content(tmp_path, monkeypatch):
    dataset, _ = random_set(np.random.default_rng(SEED), "segm")
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(dataset))
    fresh, ids = load_ground_truth(str(path), "lvis", with_masks=True)
    assert (tmp_path / "annotations.lvis_index.npz").is_file()

    def refuse(_):
        raise AssertionError("the file was parsed again")

    with monkeypatch.context() as patch:
        patch.setattr("lt_detectron2.evaluation.index_cache.read_annotations", refuse)
        cached, cached_ids = load_ground_truth(str(path), "lvis", with_masks=True)
        assert load_ground_truth(str(path), "lvis")[0].masks is None
        with pytest.raises(AssertionError):
            load_ground_truth(str(path), "coco")
    assert cached_ids == ids == sorted(c["id"] for c in dataset["categories"])
    assert cached.fingerprint == fresh.fingerprint
    for name, column in fresh.columns().items():
        np.testing.assert_array_equal(cached.columns()[name], column)

    dataset["categories"].append(category(99))
    path.write_text(json.dumps(dataset))
    assert load_ground_truth(str(path), "lvis")[1] == [*ids, 99]
    (tmp_path / "annotations.lvis_index.npz").write_bytes(b"damaged")
    assert load_ground_truth(str(path), "lvis")[1] == [*ids, 99]
    del dataset["annotations"]
    path.write_text(json.dumps(dataset))
    assert load_ground_truth(str(path), "lvis") == (None, [*ids, 99])


def test_small_masks_give_what_large_ones_give(tmp_path):
    cfg = small_config(
        tmp_path, "LongTailROIHeads", "SoftmaxCrossEntropyLoss", "MODEL.MASK_ON", "True"
    )
    model = small_detector(cfg).eval()
    with torch.no_grad():  # masks with edges, where an untrained head has none
        model.roi_heads.mask_head.predictor.weight.mul_(300)
    inputs = [
        {**{k: v for k, v in entry.items() if k != "instances"}, "image_id": id, "height": 50}
        for id, entry in enumerate(batch(), start=1)
    ]
    classes, checked = [category(id) for id in range(1, 8)], [1, 2, 4, 5, 6, 7]
    images = [image(id, height=50, width=80, neg_category_ids=checked) for id in (1, 2)]
    box = {"id": 1, "image_id": 1, "category_id": 4, "bbox": [0, 0, 40, 40], "area": 1600}
    box["segmentation"] = [[0, 0, 40, 0, 40, 40, 0, 40]]
    name = register({"images": images, "annotations": [box], "categories": classes}, tmp_path)
    saved = {}
    for workers, small in ((0, False), (0, True), (2, True)):
        folder = tmp_path / f"{workers}{small}"
        options = EvaluationOptions(workers=workers)
        evaluator = LongTailLVISEvaluator(
            name, ("bbox", "segm"), output_dir=str(folder), options=options
        )
        with torch.no_grad():
            if small:
                with running_for(evaluator, model):
                    outputs = model(inputs)
                assert outputs[0]["instances"].has(ROI_MASKS)
            else:
                outputs = model(inputs)
                assert outputs[0]["instances"].pred_masks.shape[1:] == (50, 80)
        run(evaluator, list(zip(inputs, outputs)))
        saved[workers, small] = Detections.load(str(folder / "detections.npz"))
    expected = saved.pop((0, False))
    assert len(expected) > 20 and len(np.unique(expected.masks.areas())) > 10
    for found in saved.values():
        for column, values in expected.columns().items():
            np.testing.assert_array_equal(found.columns()[column], values)


def test_a_test_set_gets_a_results_file(tmp_path):
    dataset, results = small_set()
    pairs = model_outputs(dataset, results)
    del dataset["annotations"]
    folder = tmp_path / "inference"
    assert (
        run(LongTailLVISEvaluator(register(dataset, tmp_path), output_dir=str(folder)), pairs) == {}
    )
    written = json.loads((folder / "lvis_instances_results.json").read_text())
    assert [entry["score"] for entry in written] == pytest.approx([r["score"] for r in sorted(
        results, key=lambda r: r["image_id"])])  # fmt: skip
    assert written[0]["bbox"] == results[0]["bbox"]


def test_evaluation_from_the_command_line(tmp_path, caplog):
    dataset, results = small_set()
    name = register(dataset, tmp_path)
    run_folder = tmp_path / "run"
    evaluator = LongTailLVISEvaluator(name, output_dir=str(run_folder / "inference"))
    numbers = run(evaluator, model_outputs(dataset, results))["bbox"]
    cfg = small_config(
        run_folder,
        "LongTailROIHeads",
        "SoftmaxCrossEntropyLoss",
        *("MODEL.MASK_ON", "False", "DATASETS.TEST", f"('{name}',)", "LONG_TAIL.STATISTICS", ""),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "3", "TEST.DETECTIONS_PER_IMAGE", "300"),
        *("LONG_TAIL.EVAL.PREDICTIONS", str(run_folder / "inference" / "detections.npz")),
        *("LONG_TAIL.EVAL.BOOTSTRAP", "10"),
    )
    (run_folder / "class_statistics.json").write_text(
        json.dumps({"instance_count": [900, 9, 9], "image_count": [200, 2, 2], "num_images": 300})
    )
    with caplog.at_level(logging.INFO):
        found = LongTailTrainer.test_predictions(cfg)["bbox"]
    # Groups come from the training of the run that made the predictions.
    assert (found["AP"], found["APf"]) == (numbers["AP"], numbers["APr"])
    assert "copypaste: Task: bbox" in caplog.text
    assert "| bbox, bootstrap | value | std. error | 2.5 % | 97.5 % |" in caplog.text
    content = json.loads((run_folder / "inference" / "results.json").read_text())
    assert content["bootstrap"]["bbox"]["AP"]["value"] == pytest.approx(found["AP"])
    cfg.defrost()
    cfg.DATASETS.TEST = (name, name)
    with pytest.raises(ValueError, match="DATASETS.TEST names 2"):
        LongTailTrainer.test_predictions(cfg)


@pytest.mark.parametrize(
    ("evaluator_type", "expected"),
    [("lvis", LongTailLVISEvaluator), ("coco", LongTailCOCOEvaluator)],
)
def test_the_trainer_chooses_by_metadata(evaluator_type, expected, tmp_path):
    dataset, _ = small_set()
    name = register(dataset, tmp_path, evaluator_type)
    overrides = ("MODEL.ROI_HEADS.NUM_CLASSES", "3", "LONG_TAIL.STATISTICS", "")
    loss = "SoftmaxCrossEntropyLoss"
    cfg = small_config(tmp_path, "LongTailROIHeads", loss, *overrides)
    evaluator = LongTailTrainer.build_evaluator(cfg, name)
    assert type(evaluator) is expected and evaluator.category_cap is None
    cfg = small_config(
        tmp_path, "LongTailROIHeads", loss, *overrides, "LONG_TAIL.EVAL.AP_FIXED", "True"
    )
    assert LongTailTrainer.build_evaluator(cfg, name).category_cap is not None


def test_an_unknown_evaluator_type_or_option_is_refused(tmp_path):
    dataset, _ = small_set()
    overrides = ("MODEL.ROI_HEADS.NUM_CLASSES", "3", "LONG_TAIL.STATISTICS", "")
    loss = "SoftmaxCrossEntropyLoss"
    cfg = small_config(tmp_path, "LongTailROIHeads", loss, *overrides)
    with pytest.raises(ValueError, match="evaluator_type 'voc', expected one of .*'open_images'"):
        LongTailTrainer.build_evaluator(cfg, register(dataset, tmp_path, "voc"))
    cfg = small_config(
        tmp_path, "LongTailROIHeads", loss, *overrides, "LONG_TAIL.EVAL.BOOTSTRAP", "-1"
    )
    with pytest.raises(ValueError, match="LONG_TAIL.EVAL: bootstrap expects a number >= 0, got -1"):
        LongTailTrainer.build_evaluator(cfg, register(dataset, tmp_path, "lvis"))


def test_a_read_only_folder_is_no_obstacle(tmp_path, monkeypatch):
    dataset, _ = small_set()
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(dataset))

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("lt_detectron2.evaluation.index_cache.replacing", refuse)
    index, _ = load_ground_truth(str(path), "lvis")
    assert index.num_images == 3
    assert [p.name for p in tmp_path.iterdir()] == ["annotations.json"]
