"""Class means over a training set: against a slow reference, kept on disk, for both heads."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import detection_utils as images_of
from detectron2.structures import Boxes
from torch.testing import assert_close

from lt_detectron2.engine import class_means
from lt_detectron2.engine.checkpoint import LongTailCheckpointer, StatisticsRecord
from lt_detectron2.engine.class_means import MEANS_FILE, gather_class_means, prepare_calibration
from lt_detectron2.engine.detector import Detector
from lt_detectron2.errors import ConfigError
from tests.modeling.detectors import NUM_CLASSES, STATISTICS, small_config, small_detector

from .small_set import register, unregister

DATASET = "class_means_train"
NODE = "LONG_TAIL.CALIBRATION"
HEADS = ("LongTailROIHeads", "LongTailCascadeROIHeads")


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory):
    register(DATASET, tmp_path_factory.mktemp("images"))
    yield
    unregister(DATASET)


def detector(folder, heads=HEADS[0], *overrides, method="NearestClassMean"):
    keys = [f"{NODE}.NAME", method, "DATASETS.TRAIN", f"('{DATASET}',)", "INPUT.FORMAT", "BGR"]
    cfg = small_config(folder, heads, "SoftmaxCrossEntropyLoss", *keys, *overrides)
    return cfg, small_detector(cfg)


def slow_means(model, stage, name):
    """Mean features of the ground truth, box by box."""
    model.eval()
    gathered = {}
    with torch.no_grad():
        for record in DatasetCatalog.get(DATASET):
            pixels = images_of.read_image(record["file_name"], "BGR")
            batch = [{"image": torch.as_tensor(pixels.transpose(2, 0, 1).copy())}]
            features = model.backbone(model.preprocess_image(batch).tensor)
            for annotation in record["annotations"]:
                x, y, w, h = annotation["bbox"]
                box = Boxes(torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32))
                made = model.roi_heads.run_box_stage(features, [box], stage)
                value = getattr(made, name)[0].flatten().double()
                gathered.setdefault(annotation["category_id"], []).append(value)
    return gathered


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("feature", ["box_head", "roi_align"])
def test_means_of_ground_truth(tmp_path, heads, feature):
    cfg, model = detector(tmp_path, heads, f"{NODE}.NearestClassMean.FEATURE", feature)
    prepare_calibration(cfg, model)
    name = "features" if feature == "box_head" else "pooled_features"
    for stage, (_, predictor) in enumerate(model.roi_heads.box_stages):
        method = predictor.calibration
        expected = slow_means(model, stage, name)
        assert set(expected) == set(method.is_known.nonzero().flatten().tolist())
        assert not method.is_known[NUM_CLASSES - 1]  # no image holds it
        for c, values in expected.items():
            mean = torch.stack(values).mean(dim=0)
            assert_close(method.class_means[c], mean, atol=1e-5, rtol=1e-4)
    model.eval()
    with torch.no_grad():
        model([{"image": torch.zeros(3, 64, 80, dtype=torch.uint8)}])


@pytest.mark.parametrize("heads", HEADS)
def test_means_of_proposals(tmp_path, heads):
    keys = (f"{NODE}.NearestClassMean.SOURCE", "proposals")
    cfg, model = detector(tmp_path, heads, *keys)
    means = gather_class_means(cfg, model)
    assert len(means) == len(model.roi_heads.box_stages)
    # The ground truth is among the proposals of the first stage.
    assert means[0][1].sum() >= sum(len(r["annotations"]) for r in DatasetCatalog.get(DATASET))
    for mean, count in means:
        assert mean.isfinite().all() and (count >= 0).all()


@pytest.fixture
def passes(monkeypatch):
    """An entry for each pass over the training set."""
    done = []
    gather = class_means.gather_class_means
    monkeypatch.setattr(
        class_means, "gather_class_means", lambda *args: done.append(1) or gather(*args)
    )
    return done


def test_kept_until_the_weights_change(tmp_path, passes):
    cfg, model = detector(tmp_path)
    prepare_calibration(cfg, model)
    first = model.roi_heads.box_predictor.calibration.class_means
    _, again = detector(tmp_path)
    prepare_calibration(cfg, again)
    assert len(passes) == 1 and (tmp_path / MEANS_FILE).is_file()
    assert torch.equal(again.roi_heads.box_predictor.calibration.class_means, first)
    with torch.no_grad():
        again.roi_heads.box_head.fc2.weight *= 2
    prepare_calibration(cfg, again)
    assert len(passes) == 2
    changed = again.roi_heads.box_predictor.calibration.class_means
    assert not torch.equal(changed, first)


def test_other_training_sets_are_gathered_anew(tmp_path):
    cfg, model = detector(tmp_path)
    prepare_calibration(cfg, model)
    other, model = detector(tmp_path, HEADS[0], "DATASETS.TRAIN", f"('{DATASET}', '{DATASET}')")
    prepare_calibration(other, model)
    saved = torch.load(tmp_path / MEANS_FILE, weights_only=True)
    assert [name for name, _ in saved["sets"]] == [DATASET, DATASET]


@pytest.mark.parametrize(
    "source, key, value, num_passes",
    [
        ("ground_truth", "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]", 2),
        ("ground_truth", "MODEL.RPN.POST_NMS_TOPK_TEST", "7", 1),
        ("proposals", "MODEL.RPN.POST_NMS_TOPK_TEST", "7", 2),
        ("proposals", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5", 2),
        ("proposals", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3", 1),
    ],
)
def test_kept_until_settings_change_them(tmp_path, passes, source, key, value, num_passes):
    keys = (HEADS[0], f"{NODE}.NearestClassMean.SOURCE", source)
    prepare_calibration(*detector(tmp_path, *keys))
    prepare_calibration(*detector(tmp_path, *keys, key, value))
    assert len(passes) == num_passes


def test_corrected_annotations_are_gathered_anew(tmp_path, passes):
    name = "class_means_corrected"
    register(name, tmp_path)
    try:
        cfg, model = detector(tmp_path, HEADS[0], "DATASETS.TRAIN", f"('{name}',)")
        prepare_calibration(cfg, model)
        prepare_calibration(cfg, model)
        assert len(passes) == 1
        file = tmp_path / f"{name}.json"
        file.write_text(file.read_text().replace('"category_id": 13', '"category_id": 23'))
        prepare_calibration(cfg, model)
        assert len(passes) == 2
        assert not model.roi_heads.box_predictor.calibration.is_known[1]
        file.unlink()  # on a machine that evaluates only
        prepare_calibration(cfg, model)
        assert len(passes) == 2
    finally:
        unregister(name)


def test_damaged_file_is_made_anew(tmp_path, passes, caplog):
    cfg, model = detector(tmp_path)
    prepare_calibration(cfg, model)
    file = tmp_path / MEANS_FILE
    whole = file.read_bytes()
    for number, content in enumerate((b"", whole[:-100], b"no archive"), start=2):
        file.write_bytes(content)
        caplog.clear()
        prepare_calibration(cfg, model)
        assert len(passes) == number and f"{file} cannot be read" in caplog.text
    torch.save([], file)
    prepare_calibration(cfg, model)
    assert len(passes) == 5


@pytest.mark.parametrize("heads, source", [(HEADS[0], "ground_truth"), (HEADS[1], "proposals")])
def test_used_where_the_training_set_is_not(tmp_path, heads, source):
    """The means beside a checkpoint serve a Detector, which names no training set."""
    cfg, model = detector(tmp_path, heads, f"{NODE}.NearestClassMean.SOURCE", source)
    prepare_calibration(cfg, model)
    expected = [predictor.calibration.class_means for _, predictor in model.roi_heads.box_stages]
    (tmp_path / "config.yaml").write_text(cfg.dump())
    record = StatisticsRecord(STATISTICS)
    LongTailCheckpointer(model, str(tmp_path), class_statistics=record).save("model_final")
    found = Detector(tmp_path / "model_final.pth", class_names="abcdefg").model
    for (_, predictor), means in zip(found.roi_heads.box_stages, expected):
        assert torch.equal(predictor.calibration.class_means, means)


def test_without_a_training_set(tmp_path):
    cfg, model = detector(tmp_path, HEADS[0], "DATASETS.TRAIN", "()")
    with pytest.raises(ConfigError, match="DATASETS.TRAIN is empty: name the set, or copy"):
        prepare_calibration(cfg, model)


@pytest.mark.parametrize("method", ["", "NorCal"])
def test_other_methods_need_nothing(tmp_path, method):
    cfg, model = detector(tmp_path, HEADS[0], "DATASETS.TRAIN", "()", method=method)
    prepare_calibration(cfg, model)
    assert not (tmp_path / MEANS_FILE).exists()
