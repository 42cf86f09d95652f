"""lt-detectron2 export: files that run by themselves, and clear words on bad input."""

import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image

from lt_detectron2.commands.command_line import main
from lt_detectron2.engine.checkpoint import StatisticsRecord
from lt_detectron2.engine.detector import Detector
from lt_detectron2.export.write import FILES, example_images, export
from lt_detectron2.statistics import ClassStatistics
from tests.export.detectors import config_and_detector, retinanet, retinanet_config
from tests.modeling.detectors import STATISTICS

NAMES = tuple(f"class_{c}" for c in range(STATISTICS.num_classes))


def save(folder, loss):
    few = "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"
    return write(folder, *config_and_detector(folder, *few, loss=loss))


def write(folder, cfg, model):
    (folder / "config.yaml").write_text(cfg.dump())
    counts = STATISTICS.instance_count, STATISTICS.image_count, STATISTICS.num_images
    record = StatisticsRecord(ClassStatistics(*counts, NAMES))
    DetectionCheckpointer(model, str(folder), class_statistics=record).save("model_final")
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def softmax(tmp_path_factory):
    return save(tmp_path_factory.mktemp("softmax"), "SoftmaxCrossEntropyLoss")


@pytest.fixture(scope="module")
def seesaw(tmp_path_factory):
    return save(tmp_path_factory.mktemp("seesaw"), "SeesawLoss")


@pytest.fixture
def run(tmp_path, capsys):
    def export(weights, *arguments):
        output = tmp_path / "exported"
        status = main(["export", str(weights), *map(str, arguments), "--output", str(output)])
        printed = capsys.readouterr()
        return status, output, printed.out + printed.err

    return export


def test_plain_runs_in_detectron2(run, softmax):
    """Read as a program would that has Detectron2 only, but for the small backbone."""
    status, output, printed = run(softmax, "--format", "plain")
    assert status == 0 and "192 x 256" in printed
    cfg = get_cfg()
    cfg.merge_from_file(str(output / "model_plain.yaml"))
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    original = Detector(softmax)
    image = example_images()[0]
    with torch.no_grad():
        found = model([{"image": original.pixels(image)}])[0]["instances"]
    expected = original(image)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, expected.pred_classes)


def test_torchscript_with_images_of_ones_own(run, seesaw, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    status, output, printed = run(seesaw, "--images", tmp_path / "a.png")
    assert status == 0 and "70 x 90" in printed and "192 x 256" not in printed
    content = json.loads((output / "export.json").read_text())
    assert content["classes"] == list(NAMES) and content["groups"][0] == "rare"
    assert content["comparison"][0]["detections"] > 0
    assert content["outputs"] == ["boxes", "scores", "classes", "masks"]
    image = Detector(seesaw).pixels(pixels)
    found = torch.jit.load(str(output / "model.ts"))(image.float())
    assert {len(part) for part in found} == {content["comparison"][0]["exported"]}


def test_refused_method_says_why(run, seesaw):
    status, output, printed = run(seesaw, "--format", "plain")
    assert status == 1 and "SeesawLoss multiplies" in printed
    assert not any((output / file).exists() for file in FILES.values())


def test_file_that_differs_is_removed(run, softmax, monkeypatch):
    def other(cfg, model):
        cfg, model = real(cfg, model)
        model.roi_heads.box_predictor.cls_score.bias.data += torch.arange(8.0)
        return cfg, model

    from lt_detectron2.export import write

    real = write.plain_detector
    monkeypatch.setattr(write, "plain_detector", other)
    status, output, printed = run(softmax, "--format", "plain")
    assert status == 1 and "differs from the original" in printed
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("file_format", ["plain", "torchscript"])
def test_file_that_does_not_run_is_removed(softmax, tmp_path, monkeypatch, file_format):
    def fail(*_, **__):
        raise RuntimeError("expected 800 rows")

    monkeypatch.setattr("lt_detectron2.export.write.compare", fail)
    (tmp_path / "model_plain.yaml").write_text("")
    with pytest.raises(RuntimeError, match="800 rows"):
        export(Detector(softmax), file_format, tmp_path)
    kept = [] if file_format == "plain" else ["model_plain.yaml"]
    assert [file.name for file in tmp_path.iterdir()] == kept


def test_folder_of_the_training_keeps_its_files(softmax):
    folder = softmax.parent
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    command = ["export", str(softmax), "--format", "plain", "--output", str(folder)]
    assert main(command) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert main(command) == 0  # and again, by the training's config


def test_bad_input(run, softmax, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "file").write_text("")
    for arguments, words in (
        ((tmp_path / "no.pth",), "no checkpoint"),
        ((softmax, "--images", tmp_path / "nowhere"), "no file, folder or pattern"),
        ((softmax, "--images", tmp_path / "notes.txt"), "--images names no image"),
        ((softmax, "--images", tmp_path / "broken.png"), "cannot be read as an image"),
        ((softmax, "--tolerance", "-1"), "--tolerance is -1.0"),
        ((softmax, "--config-file", tmp_path / "no.yaml"), "no config"),
    ):
        status, _, printed = run(*arguments)
        assert status == 1 and words in printed, printed
    assert (
        main(["export", str(softmax), "--format", "plain", "--output", str(tmp_path / "file")]) == 1
    )
    with pytest.raises(SystemExit):
        run(softmax, "--format", "caffe2")


def test_images_without_anything(run, softmax):
    threshold = ["--set", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"]
    status, _, printed = run(softmax, "--format", "plain", *threshold)
    assert status == 1 and "finds nothing" in printed


def test_retinanet_of_detectron2(run, tmp_path):
    """Its trace would be wrong; ours has its weights and finds the same."""
    weights = write(tmp_path, retinanet_config(tmp_path, "RetinaNet"), retinanet(tmp_path))
    status, output, printed = run(weights)
    assert status == 1 and "--set MODEL.META_ARCHITECTURE LongTailRetinaNet" in printed
    assert not output.exists()
    status, output, printed = run(weights, "--format", "plain")
    assert status == 0, printed
    arguments = ["--set", "MODEL.META_ARCHITECTURE", "LongTailRetinaNet"]
    status, output, printed = run(weights, *arguments)
    assert status == 0 and (output / "model.ts").is_file(), printed
