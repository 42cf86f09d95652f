"""`make-lt`: the profiles, their determinism, bad input."""

import json

import numpy as np
import pytest

from lt_detectron2.commands import make_lt
from lt_detectron2.commands.command_line import main
from lt_detectron2.data.datasets.coco_lt_rules import BAGS_TARGETS
from lt_detectron2.data.long_tail_cut import cut_long_tail, profile_targets
from lt_detectron2.errors import DatasetError


def dataset(*objects):
    """A file with so many objects of each category, at most three in an image."""
    categories = [10 * c + 1 for c, count in enumerate(objects) for _ in range(count)]
    annotations = [
        {"id": i, "image_id": 5 * i % 97, "category_id": c, "bbox": [1, 1, 9, 9]}
        for i, c in enumerate(categories)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 20} for i in range(97)]
    names = [{"id": 10 * c + 1, "name": f"class {c}"} for c in range(len(objects))]
    return {"images": images, "annotations": annotations, "categories": names}


def counts(annotations):
    return np.unique([a["category_id"] for a in annotations], return_counts=True)[1].tolist()


def test_targets_by_hand():
    assert profile_targets("zipf", [60, 90, 90]).tolist() == [90, 45, 30]
    assert profile_targets("zipf", [60, 90, 90], exponent=2.0).tolist() == [90, 23, 10]
    assert profile_targets("exponential", [100] * 3, factor=100.0).tolist() == [100, 10, 1]
    assert profile_targets("exponential", [100, 4, 3], factor=1.0).tolist() == [100, 4, 3]


def test_bags_on_as_much_as_coco_is_its_own_table():
    assert profile_targets("bags", [30_000] * 80).tolist() == list(BAGS_TARGETS)
    smaller = profile_targets("bags", [2615] * 80)
    assert smaller[0] == 2615 and smaller[1] == 601 and smaller[-1] == 1


@pytest.mark.parametrize("profile", ["bags", "zipf", "exponential"])
def test_the_cut_has_the_targets_and_whole_images(profile):
    source = dataset(120, 80, 100, 90)
    content, kept = cut_long_tail(source, profile)
    expected = profile_targets(profile, [120, 100, 90, 80]).tolist()
    assert sorted(counts(kept), reverse=True) == expected
    assert {i["id"] for i in content["images"]} == {a["image_id"] for a in kept}
    assert content["categories"] == source["categories"]
    assert cut_long_tail(source, profile)[1] == kept
    assert cut_long_tail(source, profile, seed=1)[1] != kept


def test_command(tmp_path, capsys):
    (tmp_path / "all.json").write_text(json.dumps(dataset(120, 80, 100)))
    target = tmp_path / "made" / "lt.json"
    options = ["--profile", "exponential", "--factor", "10"]
    assert main(["make-lt", str(tmp_path / "all.json"), str(target), *options]) == 0
    assert "objects of 3 classes" in capsys.readouterr().out
    made = json.loads(target.read_text())
    assert sorted(counts(made["annotations"])) == [12, 38, 120]
    assert made["info"]["long_tail"] == {"profile": "exponential", "factor": 10.0, "seed": 0}
    first = target.read_bytes()
    assert main(["make-lt", str(tmp_path / "all.json"), str(target), *options]) == 0
    assert target.read_bytes() == first


def test_listed_images(tmp_path, monkeypatch):
    """SimCal's list, of a smaller set: all of the first category, the second in two images only."""
    content = dataset(12, 8)
    of_second = [a["image_id"] for a in content["annotations"] if a["category_id"] == 11]
    low, high = sorted(of_second[:2])
    (tmp_path / "list.txt").write_text(f"1 12 12 *\n11 2 2 {low} {high - low}\n")
    (tmp_path / "all.json").write_text(json.dumps(content))
    monkeypatch.setattr(make_lt, "SIMCAL_IMAGES", tmp_path / "list.txt")
    target = tmp_path / "lt.json"
    command = ["make-lt", str(tmp_path / "all.json"), str(target), "--profile", "simcal"]
    assert main(command) == 0
    made = json.loads(target.read_text())
    assert counts(made["annotations"]) == [12, 2]
    assert {i["id"] for i in made["images"]} == {a["image_id"] for a in made["annotations"]}
    kept = [a["image_id"] for a in made["annotations"] if a["category_id"] == 11]
    assert sorted(kept) == [low, high]


def test_one_category_is_no_tail():
    with pytest.raises(DatasetError, match="at least 2 categories"):
        profile_targets("zipf", [5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factor", "0.5", "--profile", "exponential"], "--factor is 0.5"),
        (["--exponent", "-1", "--profile", "zipf"], "--exponent is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--profile", "simcal"], "use the annotations of COCO train2017"),
    ],
)
def test_bad_input(tmp_path, options, message, capsys):
    source = tmp_path / "all.json"
    source.write_text(json.dumps(dataset(12, 8)))
    assert main(["make-lt", str(source), str(tmp_path / "lt.json"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "lt.json").exists()


def test_places(tmp_path, capsys):
    source = tmp_path / "all.json"
    source.write_text(json.dumps(dataset(12, 8)))
    broken = tmp_path / "broken.json"
    broken.write_text(source.read_text().replace("[1, 1, 9, 9]", '["1", 1, 9, 9]'))
    (tmp_path / "link").symlink_to(tmp_path)
    for arguments, message in (
        ([str(source), str(source)], "is the source itself"),
        ([str(source), str(tmp_path / "link" / "all.json")], "is the source itself"),
        (
            [str(source), str(tmp_path / "link" / ".." / tmp_path.name / "all.json")],
            "source itself",
        ),
        ([str(tmp_path / "nothing.json"), "lt.json"], "is missing"),
        ([str(source), str(source / "lt.json")], "cannot be written"),
        ([str(broken), str(tmp_path / "lt.json")], "broken.json: annotation 0 has the box"),
    ):
        assert main(["make-lt", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "lt.json").exists()
