"""lt-detectron2 demo: names and groups from the checkpoint alone, and clear words on bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from PIL import Image

from lt_detectron2.analysis import detect
from lt_detectron2.commands.command_line import main
from lt_detectron2.engine.checkpoint import StatisticsRecord
from lt_detectron2.engine.detector import Detector
from lt_detectron2.errors import ConfigError
from lt_detectron2.statistics import ClassStatistics
from tests.modeling.detectors import STATISTICS, small_config, small_detector

NAMES = tuple(f"class_{c}" for c in range(STATISTICS.num_classes))


def save(folder, class_names=NAMES, **checkpointables):
    """A checkpoint with its config beside it, as a training leaves them."""
    cfg = small_config(folder, "LongTailROIHeads", "SeesawLoss")
    (folder / "config.yaml").write_text(cfg.dump())
    statistics = ClassStatistics(
        STATISTICS.instance_count, STATISTICS.image_count, STATISTICS.num_images, class_names
    )
    record = {"class_statistics": StatisticsRecord(statistics)} | checkpointables
    DetectionCheckpointer(small_detector(cfg), str(folder), **record).save("model_final")
    (folder / "class_statistics.json").unlink()  # nothing but the checkpoint and the config
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (64, 80)), ("b.jpg", (50, 40)), ("a.jpg", (64, 80))):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def run(tmp_path, weights, capsys):
    def demo(*arguments, of=weights):
        output = tmp_path / "found"
        status = main(["demo", str(of), *map(str, arguments), "--output", str(output)])
        file = output / "detections.json"
        content = json.loads(file.read_text()) if file.is_file() else None
        printed = capsys.readouterr()
        return status, content, output, printed.out + printed.err

    return demo


def test_folder(run, images, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "get", None)  # no data set is asked for
    status, content, output, _ = run(images, "--threshold", "0.0", "--most", "4")
    assert status == 0
    assert [c["name"] for c in content["classes"]] == list(NAMES)
    groups = ["rare", "rare", "common", "common", "frequent", "frequent", "frequent"]
    assert [c["group"] for c in content["classes"]] == groups
    assert content["classes"][2]["train_images"] == 30
    assert [entry["picture"] for entry in content["images"]] == ["a.jpg", "a_2.jpg", "b.jpg"]
    for entry in content["images"]:
        assert max(Image.open(output / entry["picture"]).size) == 600
        assert len(entry["detections"]) == 4
        scores = [d["score"] for d in entry["detections"]]
        assert scores == sorted(scores, reverse=True)
        for detection in entry["detections"]:
            assert detection["group"] == groups[NAMES.index(detection["name"])]
            x, y, width, height = detection["box"]
            assert 0 <= x and x + width <= entry["width"] + 0.01 and height > 0
            assert detection["segmentation"]["size"] == [entry["height"], entry["width"]]


def test_inputs_are_not_written_over(weights, images, tmp_path):
    """The pictures go to the folder of the images, by another way to it."""
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    (tmp_path / "link").symlink_to(images)
    assert main(["demo", str(weights), str(images), "--output", str(tmp_path / "link")]) == 0
    after = {path.name: path.read_bytes() for path in images.iterdir()}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"a_2.jpg", "a_3.jpg", "b_2.jpg", "detections.json"}


def test_equals_the_model(weights, images):
    """Names of classes, the order of colours and the size are those that the training had."""
    detector = Detector(weights)
    image = np.asarray(Image.open(images / "a.png"))
    found = detector(image)
    assert detector.cfg.INPUT.FORMAT == "RGB"
    pixels = torch.as_tensor(image.transpose(2, 0, 1).copy())
    with torch.no_grad():
        (expected,) = detector.model([{"image": pixels, "height": 64, "width": 80}])
    order = expected["instances"].scores.argsort(descending=True)
    assert torch.equal(found.scores, expected["instances"].scores[order])
    mirrored = Detector(weights, overrides=["INPUT.FORMAT", "BGR"])(image[:, :, ::-1])
    assert torch.equal(mirrored.scores, found.scores)


def test_a_value_that_no_model_can_have_is_named(weights):
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.FUSE_TYPE 'product'"):
        Detector(weights, overrides=["MODEL.FPN.FUSE_TYPE", "product"])


def test_pattern_and_threshold(run, images):
    status, content, _, text = run(images / "*.jpg", "--threshold", "1.0")
    assert status == 0 and len(content["images"]) == 2
    assert (
        "try a lower --threshold" in text.replace("\n", " ")
        or not content["images"][0]["detections"]
    )


def test_one_bad_image_among_others(run, images, caplog):
    (images / "c.png").write_text("not an image")
    status, content, _, text = run(images)
    assert status == 1 and len(content["images"]) == 3 and "3 done, 1 unreadable" in text
    assert "c.png' cannot be read as an image" in caplog.text


def test_interrupted_run_keeps_what_is_done(run, images, monkeypatch):
    drawn = []

    def draw(*arguments):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(1)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(detect, "draw_picture", draw)
    status, content, _, _ = run(images)
    assert status == 130 and content["images"]


@pytest.fixture
def film(tmp_path):
    """Four frames, five a second."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (80, 64))
    for shade in range(4):
        writer.write(np.full((64, 80, 3), 60 * shade, dtype=np.uint8))
    writer.release()
    return path


def test_video(run, film):
    import cv2

    status, content, output, _ = run(film, "--frames", "3")
    assert status == 0 and [entry["frame"] for entry in content["images"]] == [0, 1, 2]
    video = cv2.VideoCapture(str(output / "film.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and video.get(cv2.CAP_PROP_FPS) == 5


def test_video_is_not_written_over(weights, film, tmp_path):
    source = film.rename(tmp_path / "film.mp4")
    before = source.read_bytes()
    assert main(["demo", str(weights), str(source), "--output", str(tmp_path)]) == 0
    assert source.read_bytes() == before and (tmp_path / "film_2.mp4").is_file()


def test_camera(run, film, monkeypatch):
    """Camera 3 is a film here; there is no other."""
    import cv2

    cameras, capture = {3: str(film)}, cv2.VideoCapture
    monkeypatch.setattr("cv2.VideoCapture", lambda number: capture(cameras.get(number, "none")))
    status, content, output, _ = run("--webcam", "3", "--frames", "2")
    assert status == 0 and (output / "webcam3.mp4").is_file()
    assert [(e["file"], e["frame"]) for e in content["images"]] == [("webcam3", 0), ("webcam3", 1)]
    status, _, _, text = run("--webcam", "0")
    assert status == 1 and "camera 0 cannot be opened: check that it is there" in text


def test_video_that_cannot_be_written(run, film, monkeypatch):
    monkeypatch.setattr("cv2.VideoWriter.isOpened", lambda self: False)
    status, _, _, text = run(film)
    assert status == 1 and "film.mp4 cannot be written: check the folder" in text


def test_video_without_opencv(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "film.mp4").write_bytes(b"")
    status, _, _, text = run(tmp_path / "film.mp4")
    assert status == 1 and "need OpenCV, which is not installed: pip install" in text


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["nowhere.png"], "no file, folder or pattern 'nowhere.png'"),
        (["nowhere/*.png"], "no file, folder or pattern 'nowhere/*.png'"),
        ([], "nothing to look at"),
        (["FOLDER/notes.txt"], "notes.txt' cannot be read as an image"),
        (["FOLDER", "--threshold", "3"], "--threshold 3.0 is no score"),
        (["FOLDER", "--most", "0"], "--most is 0: show at least 1"),
        (["FOLDER", "--frames", "-1"], "--frames is -1: give a number"),
        (["FOLDER", "--config-file", "none.yaml"], "no config 'none.yaml'"),
        (["FOLDER", "--names", "none.txt"], "--names: 'none.txt' cannot be read"),
        (["FOLDER", "--set", "MODEL.NO_KEY", "1"], "config key 'MODEL.NO_KEY' does not exist"),
        (["FOLDER", "--set", "LONG_TAIL.LOSS.NAME", "FocalLoss"], "does not fit the model"),
    ],
)
def test_bad_arguments(run, images, arguments, text):
    status, _, _, printed = run(*[a.replace("FOLDER", str(images)) for a in arguments])
    assert status == 1 and text in printed and "Traceback" not in printed


def test_bad_checkpoints(run, images, tmp_path):
    broken = tmp_path / "broken.pth"
    for content, text in (
        (None, "no checkpoint at"),
        (b"text", "cannot be read"),
        ({"model": {}}, "this library; set LONG_TAIL.STATISTICS to the class_statistics.json"),
    ):
        if isinstance(content, bytes):
            broken.write_bytes(content)
        elif content is not None:
            broken = tmp_path / "other.pth"
            torch.save(content, broken)
        status, _, _, printed = run(images, of=broken)
        assert status == 1 and text in printed, printed


def test_checkpoint_of_another_program(run, images, weights, tmp_path):
    """It needs counts from a file, and a word of the caller's if it is a full pickle."""
    content = torch.load(weights, weights_only=True)
    counts = tmp_path / "class_statistics.json"
    counts.write_text(json.dumps(content.pop("class_statistics")))
    other = tmp_path / "other.pth"
    torch.save({**content, "written_to": Path("other.pth")}, other)
    config = weights.with_name("config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        config.replace("ALLOW_PICKLE: false", "ALLOW_PICKLE: true")
    )
    status, _, _, printed = run(images, of=other)
    assert status == 1 and "set LONG_TAIL.STATISTICS to a class_statistics.json" in printed
    with_counts = ("--set", "LONG_TAIL.STATISTICS", counts)
    status, _, _, printed = run(images, *with_counts, of=other)
    assert status == 1 and "load it with LONG_TAIL.ALLOW_PICKLE True" in printed
    status, found, _, _ = run(images, *with_counts, "LONG_TAIL.ALLOW_PICKLE", "True", of=other)
    assert status == 0 and [c["name"] for c in found["classes"]] == list(NAMES)
    status, _, _, printed = run(images, "--set", "LONG_TAIL.STATISTICS", "none.json", of=other)
    assert status == 1 and "LONG_TAIL.STATISTICS: no file 'none.json'" in printed


def test_checkpoint_without_names(run, images, tmp_path):
    (tmp_path / "run").mkdir()
    nameless = save(tmp_path / "run", class_names=None)
    status, _, _, printed = run(images, of=nameless)
    assert status == 1 and "counts of 7 classes but not their names" in printed
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES[:3]))
    status, _, _, printed = run(images, "--names", names, of=nameless)
    assert status == 1 and "expected 7 class names" in printed and "got 3" in printed
    names.write_text("\n".join(NAMES))
    status, content, _, _ = run(images, "--names", names, of=nameless)
    assert status == 0 and content["classes"][0]["name"] == "class_0"
