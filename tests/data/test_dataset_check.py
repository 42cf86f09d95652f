"""`datasets/check.py`: what it says of data that are there, missing, incomplete or cut short."""

import json

import pytest

from lt_detectron2.data import dataset_check


@pytest.fixture
def check():
    return dataset_check


@pytest.fixture
def root(tmp_path, check, monkeypatch):
    """A tree with a little of each kind of file, and a table that expects just that."""
    for path in (
        "coco/val2017/1.jpg",
        "coco/val2017/2.jpg",
        "oi/train_0/a.jpg",
        "oi/train_f/b.jpg",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    dataset = {"images": [1, 2], "annotations": [1, 2, 3], "info": {}}
    (tmp_path / "val.json").write_text(json.dumps(dataset) + "\n")
    (tmp_path / "boxes.csv").write_text("ImageID,XMin\na,0.5\nb,0.25\n")
    items = (
        check.Item("coco/val2017/", "the images' page", {"images": 2}),
        check.Item("oi/train/", "the images' page"),
        check.Item("val.json", "the annotations' page", {"images": 2, "annotations": 3}),
        check.Item("boxes.csv", "the boxes' page", {"rows": 2}, ("XMin", "ImageID")),
        check.Item("extra.json", "an optional page", optional=True),
    )
    monkeypatch.setattr(check, "DATASETS", {"little": items, "other": items[:1]})
    return tmp_path


def run(check, capsys, *arguments):
    code = check.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_complete(check, root, capsys):
    code, text = run(check, capsys, "--root", root, "little")
    assert code == 0 and "little: complete" in text and "other" not in text
    assert "ok        coco/val2017/  2 images" in text
    assert "ok        oi/train/  2 images" in text
    assert "(missing) extra.json" in text and "from an optional page" in text
    code, text = run(check, capsys, "--root", root, "--deep")
    assert code == 0 and "val.json  2 images, 3 annotations" in text
    assert "boxes.csv  2 rows" in text and "other: complete" in text


def test_missing_fails_only_if_asked_for(check, root, capsys):
    (root / "val.json").unlink()
    code, text = run(check, capsys, "--root", root)
    assert code == 0 and "little: incomplete" in text
    assert "missing   val.json\n            from the annotations' page" in text
    assert run(check, capsys, "--root", root, "little")[0] == 1
    assert run(check, capsys, "--root", root, "other")[0] == 0


@pytest.mark.parametrize(
    "path, content, message",
    [
        ("val.json", '{"images": [1, 2], "annot', "ends in the middle; download it again"),
        ("val.json", "<html>", "does not begin like a JSON object"),
        ("boxes.csv", "ImageID,XMin\na,0.5\nb", "ends in the middle of a line"),
        ("boxes.csv", "ImageID,Y\na,0.5\n", "has no column XMin"),
        ("boxes.csv", "", "is empty"),
        ("boxes.csv", b"\xff\xfe", "cannot be read"),
        ("val.json", "", "does not begin like"),
    ],
)
def test_damage_is_found_without_reading_all(check, root, capsys, path, content, message):
    (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, text = run(check, capsys, "--root", root)
    assert code == 1 and "little: damaged" in text and message in text


def test_images_and_entries_are_counted(check, root, capsys):
    (root / "coco/val2017/2.jpg").unlink()
    code, text = run(check, capsys, "--root", root, "other")
    assert code == 1 and "wrong     coco/val2017/  1 of 2 images" in text
    (root / "val.json").write_text('{"images": [1], "annotations": []}')
    (root / "boxes.csv").write_text("ImageID,XMin\na,0.5\n")
    assert "val.json  1 images, expected 2" not in run(check, capsys, "--root", root)[1]
    text = run(check, capsys, "--root", root, "--deep")[1]
    assert "val.json  1 images, expected 2" in text and "boxes.csv  1 rows, expected 2" in text
    (root / "val.json").write_text('{"images": [1 "annotations": []}')
    assert "cannot be read" in run(check, capsys, "--root", root, "--deep")[1]


def test_no_root_and_unknown_names(check, tmp_path, capsys):
    code, text = run(check, capsys, "--root", tmp_path / "nowhere")
    assert code == 0 and "set DETECTRON2_DATASETS" in text and "coco: nothing is there" in text
    with pytest.raises(SystemExit):
        check.main(["imagenet"])
    assert "no data set 'imagenet'; there are coco, lvis-v1" in capsys.readouterr().err


def test_every_registered_set_is_in_the_table(check):
    paths = {item.path for items in check.DATASETS.values() for item in items}
    assert {
        "coco/annotations/instances_train2017.json",
        "coco_lt/coco_lt_bags_train.json",
        "coco_lt/coco_lt_simcal_train.json",
        "lvis/lvis_v0.5_image_info_test.json",
        "lvis/lvis_v1_image_info_test_dev.json",
        "openimages/annotations/challenge-2019-label500-hierarchy.json",
        "synthlt/demo/synthlt.json",
    } <= paths
    assert all(item.source for items in check.DATASETS.values() for item in items)
