"""`recommend`: a method by the counts, its config, its evidence, and what is done twice."""

import argparse
import json

import pytest
import yaml

from lt_detectron2.analysis.advice import (
    RESULTS_PAGE,
    SECOND_STAGES_PAGE,
    read_rows,
    recommend,
)
from lt_detectron2.analysis.runs import REPOSITORY
from lt_detectron2.commands.command_line import main
from lt_detectron2.engine.compensation import double_compensation
from lt_detectron2.engine.setup import check_config, load_config
from lt_detectron2.statistics import ClassStatistics

CONFIGS = REPOSITORY / "configs/own_data"
TINY = str(CONFIGS / "tiny/Base-tiny.yaml")


def statistics(*images):
    return ClassStatistics(images, images, sum(images))


CASES = {
    "balanced": (statistics(90, 80, 60), False, "softmax", "no long-tail method is warranted"),
    "large": (statistics(5000, 900, 200), False, "softmax", "more than 100 images"),
    "common": (statistics(5000, 900, 20), False, "softmax_rfs", "no class is rare"),
    "rare": (statistics(5000, 900, 4), False, "softmax_cosine_rfs", "1 of 3 classes are rare"),
    "absent": (statistics(5000, 900, 20, 0), False, "softmax_rfs", "0 of 3 classes are rare"),
    "trained": (statistics(5000, 900, 4), True, "second_stage/crt", "a trained detector"),
    "single": (statistics(70), False, "softmax", "no long-tail method is warranted"),
}


@pytest.mark.parametrize("case", CASES)
def test_method_by_counts(case):
    counts, trained, method, reason = CASES[case]
    advice = recommend(counts, trained=trained)
    assert advice.method == method and any(reason in text for text in advice.reasons)
    assert (CONFIGS / f"{method}.yaml").is_file()


@pytest.mark.parametrize("case", CASES)
def test_evidence_is_a_row_of_the_results(case):
    advice = recommend(CASES[case][0], trained=CASES[case][1])
    for evidence in advice.evidence:
        assert evidence.page in (RESULTS_PAGE, SECOND_STAGES_PAGE)
        _, rows = read_rows(REPOSITORY / evidence.page)
        assert set(evidence.rows) <= set(rows), "rename the rows in analysis/advice.py, too"
        lines = "\n".join(evidence.lines())
        assert all(f"{row}: AP {rows[row][2]}"[:8] in lines for row in evidence.rows)


def test_settings_are_those_of_the_config():
    for counts, trained, method, _ in CASES.values():
        advice = recommend(counts, trained=trained)
        cfg = load_config(str(CONFIGS / f"{method}.yaml"))
        for key, value in flat(advice.settings):
            node = cfg
            for part in key.split("."):
                node = node[part]
            assert node == value, key


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_what_no_method_can_mend():
    warnings = recommend(statistics(5000, 900, 1, 0)).warnings
    assert "1 classes have no image" in warnings[0] and "1 classes have one image" in warnings[1]


@pytest.mark.parametrize(
    ("num_images", "smallest", "says"),
    [
        (1_600, 4, "0.0625, 100 images; LVIS's 0.001 would mean 1.6 images here and do nothing"),
        (20_000, 20, "0.005, 100 images; LVIS's 0.001 would mean 20 images here and do nothing"),
        (20_000, 5, "0.005, 100 images"),
        (100_000, 5, "0.001, 100 images"),
    ],
)
def test_lvis_threshold_is_useless_only_where_it_repeats_nothing(num_images, smallest, says):
    images = [num_images, 150, smallest]
    advice = recommend(ClassStatistics(images, images, num_images))
    assert advice.reasons[-1] == f"the repeat threshold is {says}"


def test_evidence_is_explained_where_there_is_some(data, tmp_path, capsys):
    """What is measured is said to be so, and softmax is not compared with itself."""
    explained, compared = "a small detector from scratch", "compare it with softmax"
    for counts, expected in (
        (CASES["balanced"][0], (False, False)),
        (CASES["large"][0], (True, False)),
        (CASES["rare"][0], (True, True)),
    ):
        source = tmp_path / "class_statistics.json"
        source.write_text(json.dumps(counts.state_dict()))
        assert main(["recommend", str(source), "--output", str(tmp_path / "my.yaml")]) == 0
        printed = capsys.readouterr().out
        assert (explained in printed, compared in printed) == expected
    for option in ("--val", "--val-images"):
        assert main(["recommend", str(source), option, str(data / "val.json")]) == 1
        assert "go with an annotation file" in capsys.readouterr().err


def test_what_the_base_has_is_not_called_chosen(data, tmp_path, capsys):
    base, output = tmp_path / "base.yaml", tmp_path / "my.yaml"
    base.write_text(f"_BASE_: {TINY}\nMODEL:\n  ROI_HEADS:\n    SCORE_THRESH_TEST: 0.05\n")
    options = ["--images", str(data / "images"), "--output", str(output)]
    for given, expected in (
        (["--base", str(base)], ["TEST 0.05: as the base", "IMAGE 300: as the base"]),
        ([], ["TEST 0.0001: rare classes have low", "IMAGE 300: Detectron2's 100 may"]),
    ):
        assert main(["recommend", str(data / "train.json"), *options, *given]) == 0
        printed = capsys.readouterr().out
        assert all(text in printed for text in expected), printed


def test_the_written_config_trains_where_it_is(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--images", str(data / "images"), "--val", str(data / "val.json"), "--base", TINY]
    assert main(["recommend", str(data / "train.json"), *arguments, "--output", "my.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "Train softmax_cosine_rfs" in printed and f"({RESULTS_PAGE})" in printed
    assert "softmax + GAP (ROG): AP " in printed
    cfg = load_config("my.yaml")
    check_config(cfg, argparse.Namespace(eval_only=False))
    assert cfg.LONG_TAIL.CLASSIFIER.NAME == "CosineLinear" and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7
    assert cfg.OUTPUT_DIR == "output/my"
    assert yaml.safe_load((tmp_path / "my.yaml").read_text(encoding="utf-8"))["_BASE_"] == TINY


def test_a_trained_detector_and_masks(data, tmp_path, capsys):
    weights, output = tmp_path / "model.pth", tmp_path / "my.yaml"
    weights.touch()
    options = ["--trained", str(weights), "--masks", "--output", str(output)]
    assert (
        main(["recommend", str(data / "train.json"), "--images", str(data / "images"), *options])
        == 0
    )
    cfg = load_config(str(output), ["OUTPUT_DIR", str(tmp_path / "run")])
    assert cfg.MODEL.WEIGHTS == str(weights) and cfg.MODEL.MASK_ON
    assert list(cfg.LONG_TAIL.TRAINABLE) == ["classifier"] and cfg.SOLVER.MAX_ITER == 1000


def test_what_would_end_the_training_is_said(data, tmp_path, capsys):
    content = json.loads((data / "train.json").read_text(encoding="utf-8"))
    content["images"][0]["file_name"] = "lost.jpg"
    for entry in content["annotations"]:
        del entry["segmentation"]
    source, output = tmp_path / "my.json", tmp_path / "new" / "my.yaml"
    source.write_text(json.dumps(content))
    images = ["--images", str(data / "images"), "--output", str(output)]
    options = ["--masks", "--val", str(source)]
    assert main(["recommend", str(source), *images, *options]) == 0
    printed = capsys.readouterr().out
    assert "1 of 180 images are not in" in printed and "not every object has a mask" in printed
    assert "--val is the training set" in printed and "24 epochs, and at least 2000" in printed
    assert output.is_file()
    val = ["--val", str(data / "val.json"), "--base", TINY]
    assert main(["recommend", str(data / "train.json"), *images, *val]) == 0
    printed = capsys.readouterr().out
    assert "SOLVER.MAX_ITER 300, in batches of 8: as the base has it" in printed
    assert "images are not in" not in printed and "by heart" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give annotations, or --check"),
        (["nothing.json"], "no file 'nothing.json'"),
        (["{data}/train.json", "--val", "nothing.json"], "--val: no file"),
        (["{data}/train.json", "--trained", "nothing.pth"], "--trained: no file"),
        (["{data}/train.json", "--base", "nothing.yaml"], "--base: no file"),
        (["{data}/train.json", "--output", "{data}/train.json/my.yaml"], "cannot be written"),
        (["--check", "nothing.yaml"], "no config file"),
    ],
)
def test_bad_input(data, options, message, capsys):
    assert main(["recommend", *(option.format(data=data) for option in options)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sampler", "loss", "calibration", "message"),
    [
        ("TrainingSampler", "BalancedSoftmaxLoss", "", None),
        ("RepeatFactorTrainingSampler", "EqualizationLossV2", "", None),  # measured to help
        ("RepeatFactorTrainingSampler", "BalancedSoftmaxLoss", "", "compare with either"),
        ("ClassAwareSampler", "SeesawLoss", "", "nothing to make up for"),
        ("ClassAwareSampler", "SoftmaxCrossEntropyLoss", "", None),
        ("TrainingSampler", "SoftmaxCrossEntropyLoss", "NorCal", None),
        ("TrainingSampler", "EqualizationLossV2", "NorCal", "EqualizationLossV2 has raised"),
        ("RepeatFactorSampler", "SoftmaxCrossEntropyLoss", "TauNorm", "RepeatFactorSampler has"),
    ],
)
def test_double_compensation(sampler, loss, calibration, message, tmp_path, capsys):
    overrides = ["DATALOADER.SAMPLER_TRAIN", sampler, "LONG_TAIL.LOSS.NAME", loss]
    cfg = load_config(TINY, [*overrides, "LONG_TAIL.CALIBRATION.NAME", calibration])
    found = double_compensation(cfg)
    assert (message in found[0]) if message else not found
    path = tmp_path / "my.yaml"
    path.write_text(cfg.dump())
    assert main(["recommend", "--check", str(path)]) == int(bool(message))
    assert (message or "nothing makes up") in capsys.readouterr().out


def test_no_shipped_config_compensates_twice():
    for path in CONFIGS.rglob("*.yaml"):
        assert not double_compensation(load_config(str(path))), path
