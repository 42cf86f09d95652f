"""The search for a calibration's strength: one inference, true numbers, a config that loads."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog

from lt_detectron2.data.statistics import training_statistics
from lt_detectron2.engine.calibration_search import (
    HeldOut,
    cache_regions,
    detect,
    search,
    with_value,
)
from lt_detectron2.engine.class_means import prepare_calibration
from lt_detectron2.engine.setup import load_config
from lt_detectron2.errors import ConfigError
from tests.modeling.detectors import small_config, small_detector

from .small_set import register, unregister

DATASET = "calibration_search_train"
NODE = "LONG_TAIL.CALIBRATION"
HEADS = ("LongTailROIHeads", "LongTailCascadeROIHeads")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory):
    register(DATASET, tmp_path_factory.mktemp("images"))
    yield
    unregister(DATASET)


def prepared(folder, heads, method, *overrides):
    keys = [f"{NODE}.NAME", method, "DATASETS.TRAIN", f"('{DATASET}',)", "MODEL.MASK_ON", "False"]
    cfg = small_config(folder, heads, "SoftmaxCrossEntropyLoss", *keys, *overrides)
    model = small_detector(cfg).eval()
    prepare_calibration(cfg, model)
    statistics = training_statistics(cfg)
    return cfg, model, statistics


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("method", ["NorCal", "TauNorm", "NearestClassMean"])
def test_cached_detections_are_those_of_the_model(tmp_path, heads, method):
    keys = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    cfg, model, _ = prepared(tmp_path, heads, method, *keys)
    required = model.roi_heads.box_stages[0][1].calibration.required
    records = DatasetCatalog.get(DATASET)[:3]
    detections = detect(cache_regions(cfg, model, records, required), torch.device("cpu"))
    from detectron2.data import DatasetMapper

    mapper = DatasetMapper(cfg, False)
    with torch.no_grad():
        outputs = [model([mapper(dict(record))])[0]["instances"] for record in records]
    assert np.array_equal(detections.scores, torch.cat([o.scores for o in outputs]).numpy())
    assert np.array_equal(
        detections.category_ids, torch.cat([o.pred_classes for o in outputs]).numpy()
    )
    assert detections.image_ids.tolist() == [i for i, o in enumerate(outputs) for _ in o.scores]


def test_one_inference_for_all_values(tmp_path, monkeypatch):
    cfg, model, statistics = prepared(tmp_path, HEADS[0], "NorCal")
    held_out = HeldOut(cfg, statistics, share=1.0)
    assert len(held_out.records) == 8
    calls = []
    model.backbone.register_forward_hook(lambda *args: calls.append(1))
    trials = search(cfg, model, held_out, statistics, "gamma", [0.0, 0.3, 0.6])
    assert len(calls) == 8
    assert [trial.value for trial in trials] == [0.0, 0.3, 0.6]
    assert all(0 <= trial.metrics["AP"] <= 1 for trial in trials)
    assert model.roi_heads.box_predictor.calibration.gamma == 0.6


def test_means_survive_the_search(tmp_path):
    cfg, model, statistics = prepared(tmp_path, HEADS[1], "NearestClassMean")
    held_out = HeldOut(cfg, statistics, share=0.5)
    stages = [predictor for _, predictor in model.roi_heads.box_stages]
    before = [predictor.calibration.class_means.clone() for predictor in stages]
    search(cfg, model, held_out, statistics, "temperature", [0.1, 0.5])
    for predictor, means in zip(stages, before):
        assert torch.equal(predictor.calibration.class_means, means)
        assert predictor.calibration.temperature == 0.5


def test_perfect_detections_have_full_ap(tmp_path):
    cfg, _, statistics = prepared(tmp_path, HEADS[0], "NorCal")
    held_out = HeldOut(cfg, statistics, share=1.0)
    rows = [
        (record["image_id"], annotation["category_id"], annotation["bbox"])
        for record in held_out.records
        for annotation in record["annotations"]
    ]
    from lt_detectron2.evaluation import Detections

    image_ids, classes, boxes = zip(*rows)
    metrics = held_out.metrics(
        Detections(
            np.array(image_ids), np.array(classes), np.ones(len(rows)), np.array(boxes, dtype=float)
        )
    )
    assert metrics["AP"] == 1


def test_messages(tmp_path):
    cfg, _, statistics = prepared(tmp_path, HEADS[0], "NorCal")
    with pytest.raises(ConfigError, match="NorCal has no number 'tau' .*one of: gamma"):
        with_value(cfg, "tau", 0.5)
    two = cfg.clone()
    two.defrost()
    two.DATASETS.TRAIN = (DATASET, DATASET)
    with pytest.raises(ConfigError, match="on images of one training set"):
        HeldOut(two, statistics)


def test_tool_writes_a_table_and_a_config(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("calibrate", REPOSITORY / "tools/calibrate.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    cfg = small_config(
        tmp_path,
        HEADS[0],
        "SoftmaxCrossEntropyLoss",
        *("DATASETS.TRAIN", f"('{DATASET}',)", "MODEL.MASK_ON", "False"),
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    model = small_detector(cfg)
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    command = ["--config-file", str(tmp_path / "config.yaml"), "--method", "NorCal"]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert tool.main([*command, "--values", "0,0.4", "--share", "1", *weights]) == 0
    shown = capsys.readouterr().out
    assert "| gamma |" in shown and "NorCal.yaml" in shown
    table = (tmp_path / "calibration" / "NorCal.md").read_text()
    assert f"8 images of {DATASET}" in table and "Chosen by AP: gamma" in table
    chosen = load_config(str(tmp_path / "calibration" / "NorCal.yaml"))
    assert chosen.LONG_TAIL.CALIBRATION.NAME == "NorCal"
    assert chosen.LONG_TAIL.CALIBRATION.NorCal.GAMMA in (0.0, 0.4)

    assert tool.main([*command, "--parameter", "tau", "--values", "1", *weights]) == 1
    assert "NorCal has no number 'tau'" in capsys.readouterr().err
    assert tool.main([*command, "--values", "0", "--metric", "APx", *weights]) == 1
    assert "--metric: no trial has the metric 'APx'" in capsys.readouterr().err
    for option, value in (("--share", "0"), ("--share", "nan"), ("--max-images", "0")):
        missing = ["MODEL.WEIGHTS", str(tmp_path / "none.pth")]  # nothing has been read before
        assert tool.main([*command, option, value, *missing]) == 1
        assert f"error: {option} is {value}, expected" in capsys.readouterr().err
