"""One's own annotations: named in LONG_TAIL.DATA, and registered by the script of the README."""

import argparse
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lt_detectron2.data.synthetic import PROFILES, generate
from lt_detectron2.data.synthetic.example import write_example
from lt_detectron2.engine.own_data import log_own_data
from lt_detectron2.engine.setup import check_config, load_config
from lt_detectron2.errors import ConfigError, DatasetError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs/own_data"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "data"
    write_example(folder)
    return folder


def load(data, output, *overrides, config="softmax.yaml", val=True):
    sets = ["LONG_TAIL.DATA.TRAIN", str(data / "train.json")]
    sets += ["LONG_TAIL.DATA.TRAIN_IMAGES", str(data / "images")]
    if val:
        sets += ["LONG_TAIL.DATA.VAL", str(data / "val.json")]
        sets += ["LONG_TAIL.DATA.VAL_IMAGES", str(data / "images")]
    overrides = ["OUTPUT_DIR", str(output / "run"), *map(str, overrides)]
    return load_config(str(CONFIGS / config), [*sets, *overrides])


def check(cfg, eval_only=False):
    check_config(cfg, argparse.Namespace(eval_only=eval_only))


def test_what_nobody_set_is_chosen(data, tmp_path):
    cfg = load(data, tmp_path)
    check(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-4
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.WARMUP_ITERS) == (2000, 500, 200)
    assert cfg.SOLVER.STEPS == (1334, 1778)
    longer = load(data, tmp_path, "LONG_TAIL.DATA.EPOCHS", "60.0", "SOLVER.IMS_PER_BATCH", 2)
    assert longer.SOLVER.MAX_ITER == 60 * 180 // 2


def test_no_training_at_all(data, tmp_path):
    """As for saving, or evaluating, what a training would start from."""
    check(load(data, tmp_path, "SOLVER.MAX_ITER", 0))


def test_no_images_in_a_step(data, tmp_path):
    with pytest.raises(ConfigError, match="SOLVER.IMS_PER_BATCH is 0, expected the number"):
        load(data, tmp_path, "SOLVER.IMS_PER_BATCH", 0)


def test_what_somebody_set_stays(data, tmp_path):
    overrides = ["SOLVER.MAX_ITER", 90, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05]
    cfg = load(data, tmp_path, *overrides, "MODEL.ROI_HEADS.NUM_CLASSES", 7)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD) == (90, 23)
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05
    dumped = tmp_path / "config.yaml"
    dumped.write_text(cfg.dump())
    again = load_config(str(dumped))  # the config.yaml that a run leaves behind
    for node in ("DATASETS", "SOLVER", "TEST", "LONG_TAIL"):
        assert again[node] == cfg[node], node


def test_no_validation_file_is_split_off(data, tmp_path, caplog):
    cfg = load(data, tmp_path, val=False)
    check(cfg)
    assert cfg == load(data, tmp_path, val=False)
    with caplog.at_level(logging.INFO, logger="lt_detectron2"):
        log_own_data(cfg)
    assert "The two were split from" in caplog.text and "37 of 37 images" in caplog.text
    (folder,) = tmp_path.glob("split_train_*")
    assert sorted(path.name for path in folder.glob("*.json")) == ["train.json", "val.json"]
    without = load(data, tmp_path, "LONG_TAIL.DATA.VAL_SHARE", 0.0, val=False)
    assert without.DATASETS.TEST == ()


def test_crowded_images_get_more_detections(data, tmp_path):
    content = json.loads((data / "train.json").read_text())
    entry = content["annotations"][0]
    more = [{**entry, "id": 10_000 + i} for i in range(180)]
    content["annotations"] += more
    (tmp_path / "crowded.json").write_text(json.dumps(content))
    overrides = ["LONG_TAIL.DATA.TRAIN", tmp_path / "crowded.json"]
    assert load(data, tmp_path, *overrides).TEST.DETECTIONS_PER_IMAGE == 400


@pytest.mark.parametrize(
    "architecture, node", [("GeneralizedRCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET")]
)
def test_a_hiding_threshold_is_warned_of(data, tmp_path, caplog, architecture, node):
    """The one that the detector goes by."""
    for chosen in ("ROI_HEADS", "RETINANET"):
        key = f"MODEL.{chosen}.SCORE_THRESH_TEST"
        cfg = load(data, tmp_path, "MODEL.META_ARCHITECTURE", architecture, key, 0.05)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lt_detectron2"):
            log_own_data(cfg)
        value = "0.05" if chosen == node else "0.0001"
        assert f"Tested with MODEL.{node}.SCORE_THRESH_TEST {value} and" in caplog.text
        assert ("hides rare classes" in caplog.text) == (chosen == node)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", 6], ConfigError, "is 6, .*has 7 categories.*leave"),
        (["LONG_TAIL.DATA.TRAIN", "nothing.json", "LONG_TAIL.DATA.VAL", ""], DatasetError, "miss"),
        (["LONG_TAIL.DATA.VAL_SHARE", 2.0], ConfigError, r"LONG_TAIL.DATA: val_share expects"),
        (["LONG_TAIL.DATA.EPOCHS", 0.0], ConfigError, "epochs > 0"),
        (["LONG_TAIL.DATA.SPLIT_SEED", -1], ConfigError, "split_seed expects 0 or more, got -1"),
        (["LONG_TAIL.DATA.TRIAN", "x"], ConfigError, "did you mean LONG_TAIL.DATA.TRAIN"),
    ],
)
def test_bad_input(data, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        load(data, tmp_path, *overrides)


def test_images_in_another_folder(data, tmp_path):
    cfg = load(data, tmp_path, "LONG_TAIL.DATA.TRAIN_IMAGES", tmp_path)
    with pytest.raises(DatasetError, match="no image is where it should be.*TRAIN_IMAGES"):
        check(cfg)
    check(cfg, eval_only=True)  # those of validation are there


def test_other_categories_in_validation(data, tmp_path):
    content = json.loads((data / "val.json").read_text())
    content["categories"][2]["name"] = "something else"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="id 23 is 'Nº3 red checked cross' and 'something else'"):
        load(data, tmp_path, "LONG_TAIL.DATA.VAL", tmp_path / "val.json")
    del content["categories"][2]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 23]
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="id 23 is 'Nº3 red checked cross' and missing"):
        load(data, tmp_path, "LONG_TAIL.DATA.VAL", tmp_path / "val.json")


def test_validation_on_the_training_set_is_warned_of(data, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        log_own_data(load(data, tmp_path))
        assert not caplog.records
        log_own_data(load(data, tmp_path, "LONG_TAIL.DATA.VAL", data / "train.json"))
    assert "is training and validation set" in caplog.text


def test_mistakes_are_those_of_the_file_that_was_named(data, tmp_path):
    content = json.loads((data / "train.json").read_text())
    content["annotations"][0]["bbox"] = ["1", "2", "3", "4"]
    (tmp_path / "my.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="my.json: annotation 1 has the box"):
        load(data, tmp_path, "LONG_TAIL.DATA.TRAIN", tmp_path / "my.json", val=False)
    assert not list(tmp_path.glob("split_*"))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads(path, data, tmp_path):
    cfg = load(data, tmp_path, config=path.relative_to(CONFIGS))
    check(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7 and cfg.SOLVER.REFERENCE_WORLD_SIZE == 1


def to_coco(lvis_file, path):
    """The annotations as COCO, with category ids that are neither contiguous nor from 1."""
    lvis = json.loads(lvis_file.read_text())
    coco = {
        "images": [
            {k: i[k] for k in ("id", "file_name", "width", "height")} for i in lvis["images"]
        ],
        "annotations": [
            {**a, "category_id": 7 * a["category_id"], "iscrowd": 0} for a in lvis["annotations"]
        ],
        "categories": [{"id": 7 * c["id"], "name": c["name"]} for c in lvis["categories"]],
    }
    path.write_text(json.dumps(coco))


def test_script_of_the_readme(tmp_path):
    folder = generate(PROFILES["smoke"], tmp_path, seed=0)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "images").symlink_to(folder)
    for split in ("train", "val"):
        to_coco(folder / "annotations" / f"{split}.json", tmp_path / "my" / f"{split}.json")
    base = REPOSITORY / "configs/SynthLT/eqlv2_rfs_smoke.yaml"
    short = "SOLVER: {MAX_ITER: 3}\nMODEL: {MASK_ON: False}\nOUTPUT_DIR: output\n"
    (tmp_path / "detector.yaml").write_text(f"_BASE_: {base}\n{short}")
    readme = (REPOSITORY / "README.md").read_text()
    (script,) = re.findall(
        r"```python\n(from lt_detectron2.data.datasets .*?)```", readme, re.DOTALL
    )
    program = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "output/inference/results.json").read_text())["results"]
    assert 0 <= results["bbox"]["AP"] <= 100
    statistics = json.loads((tmp_path / "output/class_statistics.json").read_text())
    assert len(statistics["class_names"]) == 16
