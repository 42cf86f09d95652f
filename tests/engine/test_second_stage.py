"""Second stages from a config to a checkpoint: every recipe runs, freezes, resumes, and refuses."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from lt_detectron2.analysis.second_stages import METHODS, profile_overrides
from lt_detectron2.engine.checkpoint import LongTailCheckpointer
from lt_detectron2.engine.class_means import prepare_calibration
from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.errors import CheckpointError, ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "configs" / "SynthLT" / "second_stage"
SMALL = ["SOLVER.IMS_PER_BATCH", "2", "MODEL.MASK_ON", "False", "DATASETS.TEST", "()"]
CLASSIFIER = {f"roi_heads.box_predictor.cls_score.{name}" for name in ("weight", "bias")}
BOXES = {f"roi_heads.box_predictor.bbox_pred.{name}" for name in ("weight", "bias")}
FCS = {f"roi_heads.box_head.fc{i}.{name}" for i in (1, 2) for name in ("weight", "bias")}
RPN = {
    f"proposal_generator.rpn_head.{layer}.{name}"
    for layer in ("conv", "objectness_logits", "anchor_deltas")
    for name in ("weight", "bias")
}
STATE = (
    "roi_heads.box_predictor.cls_score.mean_feature",
    "roi_heads.box_predictor.classification_loss.mean_score",
    "roi_heads.feature_memory",
)
SECOND_HEAD = "roi_heads.box_predictor.calibration.head."


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def use_datasets(datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))


def config(recipe, folder, weights, *overrides):
    os.makedirs(folder, exist_ok=True)
    return load_config(
        str(RECIPES / f"{recipe}_demo.yaml"),
        [*profile_overrides("smoke"), *SMALL, "OUTPUT_DIR", str(folder)]
        + ["MODEL.WEIGHTS", str(weights), "SOLVER.MAX_ITER", "2", *overrides],
    )


def start(cfg, resume=False):
    seed_all_rng(cfg.SEED)
    trainer = LongTailTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


@pytest.fixture(scope="module")
def detector(datasets, tmp_path_factory):
    """The checkpoint of a softmax detector; its batch normalisation has seen images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        folder = tmp_path_factory.mktemp("detector")
        trainer = start(config("control", folder, "", "LONG_TAIL.TRAINABLE", "[]"))
        trainer.train()
    return folder / "model_final.pth"


def saved(folder, name="model_final.pth"):
    return torch.load(Path(folder) / name, weights_only=True)


def losses_of(trainer):
    """The names of the losses of one more step."""
    with EventStorage():
        return set(trainer._trainer.model(next(iter(trainer._trainer.data_loader))))


EXPECTED = {
    "control": (CLASSIFIER, {"loss_cls"}),
    "bags_train_classifier": (CLASSIFIER, {"loss_cls"}),
    "bags_train_head": (CLASSIFIER | BOXES | FCS, {"loss_cls", "loss_box_reg"}),
    "bags_tune_head": (CLASSIFIER | BOXES | FCS, {"loss_cls", "loss_box_reg"}),
    "bags_tune_all": (None, {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}),
    "crt": (CLASSIFIER, {"loss_cls"}),
    "lws": ({"roi_heads.box_predictor.cls_score.scale"}, {"loss_cls"}),
    "lws_scaled_bias": ({"roi_heads.box_predictor.cls_score.scale"}, {"loss_cls"}),
    "reweight_classifier": (CLASSIFIER, {"loss_cls"}),
    "reweight_all": (None, {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}),
    "focal_classifier": (CLASSIFIER, {"loss_cls"}),
    "focal_all": (None, {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}),
    "simcal": (
        {f"{SECOND_HEAD}{name}" for name in ("cls_score.weight", "cls_score.bias")}
        | {name.replace("roi_heads.", SECOND_HEAD) for name in FCS},
        {"loss_calibration"},
    ),
    "loce": (
        CLASSIFIER | BOXES | RPN,
        {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"},
    ),
    "tde": ({"roi_heads.box_predictor.cls_score.weight"}, {"loss_cls"}),
}
CALIBRATIONS = {method for method, row in METHODS.items() if not (row.trains or row.recipe)}


def test_every_recipe_is_listed():
    files = {path.name.removesuffix("_demo.yaml") for path in RECIPES.glob("*_demo.yaml")}
    assert files == set(EXPECTED) | CALIBRATIONS
    assert {row.recipe or method for method, row in METHODS.items()} == files


@pytest.mark.parametrize("recipe", EXPECTED)
def test_recipe(detector, tmp_path, recipe):
    trainer = start(config(recipe, tmp_path, detector))
    model = trainer._trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    after = saved(tmp_path)["model"]
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    names, losses = EXPECTED[recipe]
    if names is None:
        frozen = {name for name in before if ".stem." in name or ".res2." in name}
        assert frozen and not frozen & (trained | changed)
        assert {name.split(".")[0] for name in trained} == {
            "backbone",
            "proposal_generator",
            "roi_heads",
        }
    else:
        state = {name for name in changed - trained if name.startswith(STATE)}
        assert trained == names and changed - state <= names
    assert changed & trained, "nothing was learned"
    assert losses_of(trainer) == losses

    # What was not to start afresh came from the detector, bit by bit.
    stage1 = saved(detector.parent)["model"]
    kept = [n for n in stage1 if n in after and n not in trained and "calibration" not in n]
    assert len(kept) > 20
    if names is not None:
        assert all(torch.equal(after[name], stage1[name]) for name in kept)


@pytest.mark.parametrize("recipe", sorted(CALIBRATIONS))
def test_calibration(detector, tmp_path, recipe):
    cfg = config(recipe, tmp_path, detector, "DATASETS.TEST", "('synthlt_smoke_val',)")
    model = LongTailTrainer.build_model(cfg).eval()
    checkpointer = LongTailCheckpointer(model)
    checkpointer.strict = True
    checkpointer.load(cfg.MODEL.WEIGHTS)
    prepare_calibration(cfg, model)
    with torch.no_grad():
        (outputs,) = model(next(iter(build_detection_test_loader(cfg, "synthlt_smoke_val"))))
    scores = outputs["instances"].scores
    assert len(scores) and ((scores >= 0) & (scores <= 1)).all()
    assert model.roi_heads.box_predictor.calibration is not None


@pytest.mark.parametrize(
    "recipe", ["control", "bags_train_classifier", "crt", "simcal", "tde", "loce"]
)
def test_resumed_equals_uninterrupted(detector, tmp_path, recipe):
    overrides = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    start(config(recipe, whole, detector, *overrides)).train()
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    trainer = start(config(recipe, resumed, detector, *overrides), resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    expected, actual = saved(whole), saved(resumed)
    assert list(actual["model"]) == list(expected["model"])
    for name, value in expected["model"].items():
        assert torch.equal(actual["model"][name], value), name
    momentum, wanted = (
        state["trainer"]["_trainer"]["optimizer"]["state"] for state in (actual, expected)
    )
    assert momentum.keys() == wanted.keys()
    for key, state in wanted.items():
        for name, value in state.items():
            assert value is None or torch.equal(momentum[key][name], value), name
    ours, theirs = (state["trainer"]["processes"][0]["random"] for state in (actual, expected))
    assert torch.equal(ours["torch"], theirs["torch"])


def test_reinit_starts_afresh_and_says_so(detector, tmp_path, caplog):
    with caplog.at_level("INFO", logger="lt_detectron2"):
        trainer = start(config("crt", tmp_path, detector))
    assert "these start afresh:\n  roi_heads.box_predictor.cls_score.weight\n" in caplog.text
    stage1 = saved(detector.parent)["model"]
    after = trainer._trainer.model.state_dict()
    different = {name for name in stage1 if not torch.equal(after[name], stage1[name])}
    assert different == CLASSIFIER

    continued = start(config("control", tmp_path, detector))._trainer.model.state_dict()
    assert all(torch.equal(continued[name], stage1[name]) for name in stage1)


def test_frozen_parts_come_from_the_checkpoint(detector, tmp_path):
    with pytest.raises(CheckpointError, match="freezes 5 parameters .* stay random .*box_head"):
        start(config("crt", tmp_path, detector, "MODEL.ROI_BOX_HEAD.FC_DIM", "24"))


def test_another_width_loads_everywhere_else(detector, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="lt_detectron2"):
        trainer = start(config("bags_train_classifier", tmp_path, detector))
    assert "These start afresh, everything else is taken from the checkpoint" in caplog.text
    assert "cls_score.weight is (17, 128) in the checkpoint and (22, 128)" in caplog.text
    stage1 = saved(detector.parent)["model"]
    after = trainer._trainer.model.state_dict()
    assert all(torch.equal(after[name], stage1[name]) for name in set(stage1) - CLASSIFIER)


@pytest.mark.parametrize(
    "key, pattern, message",
    [
        ("TRAINABLE", "classifer", "LONG_TAIL.TRAINABLE: 'classifer' matches nothing"),
        ("REINIT", "roi_heads.box_predictors", "LONG_TAIL.REINIT: .* matches nothing"),
    ],
)
def test_unknown_names(detector, tmp_path, key, pattern, message):
    with pytest.raises(ConfigError, match=message):
        start(config("control", tmp_path, detector, f"LONG_TAIL.{key}", f"['{pattern}']"))


def test_reinit_does_not_touch_a_resumed_training(detector, tmp_path):
    cfg = config("crt", tmp_path, detector)
    start(cfg).train()
    trainer = start(cfg, resume=True)
    after = trainer._trainer.model.state_dict()
    assert all(torch.equal(after[name], v) for name, v in saved(tmp_path)["model"].items())


def test_another_layout_of_groups_is_refused(detector, tmp_path):
    first = tmp_path / "first"
    start(config("bags_train_classifier", first, detector)).train()
    weights = first / "model_final.pth"
    # As many groups as before, so the same width: only the layout tells them apart.
    edges = ["LONG_TAIL.LOSS.GroupSoftmaxLoss.EDGES", "[20, 100, 1000]"]
    with pytest.raises(CheckpointError, match="layout .*edges .10, 100, 1000.*edges .20, 100"):
        start(config("bags_tune_head", tmp_path / "second", weights, *edges))
    started = start(
        config(
            "bags_tune_head",
            tmp_path / "third",
            weights,
            *edges,
            "LONG_TAIL.REINIT",
            "['classifier']",
        )
    )
    assert started.start_iter == 0

    command = [sys.executable, "train_net.py", "--config-file"]
    command += [str(RECIPES / "bags_tune_head_demo.yaml"), *profile_overrides("smoke"), *SMALL]
    command += ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path / "fourth"), *edges]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: the checkpoint does not fit the model" in done.stderr
    assert "use the edges and the class counts of that training" in done.stderr


def test_two_processes(detector, tmp_path):
    command = [sys.executable, "train_net.py", "--num-gpus", "2", "--dist-url", "auto"]
    command += ["--config-file", str(RECIPES / "control_demo.yaml"), *profile_overrides("smoke")]
    command += [*SMALL, "MODEL.WEIGHTS", str(detector), "OUTPUT_DIR", str(tmp_path)]
    command += ["SOLVER.MAX_ITER", "2", "SOLVER.REFERENCE_WORLD_SIZE", "0", "MODEL.DEVICE", "cpu"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    stage1, after = saved(detector.parent)["model"], saved(tmp_path)["model"]
    changed = {name for name, value in after.items() if not torch.equal(value, stage1[name])}
    assert changed == CLASSIFIER
