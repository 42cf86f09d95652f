"""`stats` and `example-data`: counts, mistakes in annotations, bad input."""

import copy
import json

import pytest

from lt_detectron2.commands.command_line import main
from lt_detectron2.data.datasets.custom import register_annotations
from lt_detectron2.data.doubtful import find_doubtful
from lt_detectron2.data.statistics import dataset_statistics, write_statistics


@pytest.fixture(scope="module")
def content(data):
    return json.loads((data / "train.json").read_text(encoding="utf-8"))


def problems(content, **changes):
    return {f.problem: f for f in find_doubtful({**content, **changes})}


def only(content, text, **changes):
    """The finding with this text, the only one that the content had not before."""
    found = problems(content, **changes)
    (name,) = [name for name in found if text in name]
    assert set(found) - set(problems(content)) == {name}
    return found[name]


def with_entry(content, **changes):
    entries = copy.deepcopy(content["annotations"])
    entries[0].update(changes)
    return entries


def test_table_and_picture(data, tmp_path, capsys):
    picture = tmp_path / "classes.png"
    arguments = ["--images", str(data / "images"), "--picture", str(picture)]
    assert main(["stats", str(data / "train.json"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "604 objects of 7 classes in 180 images" in printed
    assert "imbalance factor 54" in printed and "2 rare, 3 common, 2 frequent" in printed
    assert "| Nº2 red striped diamond" in printed and "7.07" in printed
    assert "!" not in printed and "?" not in printed
    assert picture.stat().st_size > 1000


def test_counts_of_a_run(data, tmp_path, capsys):
    statistics = dataset_statistics((register_annotations(data / "train.json"),))
    write_statistics(statistics, tmp_path / "class_statistics.json")
    assert main(["stats", str(tmp_path / "class_statistics.json"), "--no-picture"]) == 0
    assert "imbalance factor 54" in capsys.readouterr().out


def test_what_no_training_can_use_is_an_error(data, content, tmp_path, capsys):
    broken = {**content, "annotations": with_entry(content, category_id=4)}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    assert main(["stats", str(tmp_path / "broken.json"), "--no-picture"]) == 1
    printed = capsys.readouterr().out
    assert "! 1 entries are not as COCO" in printed and "category 4, which" in printed
    assert main(["stats", str(data / "train.json"), "--images", str(tmp_path)]) == 1
    assert "... and 175 more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "text", "example"),
    [
        ({"bbox": [5, 5, 0, 7]}, "have no area", "annotation 1: [5, 5, 0, 7]"),
        ({"bbox": [5, 5, 1.5, 7]}, "narrower than 2", "1.5 x 7"),
        ({"bbox": [80, 5, 30, 7]}, "leave their image", "[80, 5, 30, 7] in 96 x 96"),
        ({"segmentation": [[1, 2, 3, 4]]}, "fewer than 3 points", "annotation 1"),
        ({"segmentation": []}, "have no mask, others have", "annotation 1"),
    ],
)
def test_doubtful_annotations(content, changes, text, example):
    finding = only(content, text, annotations=with_entry(content, **changes))
    assert example in finding.examples[0] and not finding.is_error


def test_boxes_twice_and_with_two_classes(content):
    first = content["annotations"][0]
    again = [*content["annotations"], {**first, "id": 90_000}]
    assert "annotations 1, 90000" in only(content, "annotated twice", annotations=again).examples[0]
    other = next(c["id"] for c in content["categories"] if c["id"] != first["category_id"])
    again[-1]["category_id"] = other
    assert "annotations 1, 90000" in only(content, "two classes", annotations=again).examples[0]


def test_boxes_in_other_formats(content):
    def boxes(function):
        return [{**e, "bbox": function(*e["bbox"])} for e in content["annotations"]]

    corners = boxes(lambda x, y, w, h: [x, y, x + w, y + h])
    assert any("x1 y1 x2 y2" in name for name in problems(content, annotations=corners))
    shares = boxes(lambda *box: [value / 96 for value in box])
    (finding,) = find_doubtful({**content, "annotations": shares})
    assert "shares of the image" in finding.problem and len(finding.examples) == 604


def test_doubtful_categories_and_images(content):
    same = copy.deepcopy(content["categories"])
    same[0]["name"] = "A-class"
    same[1]["name"] = "a class"
    assert only(content, "spelling only", categories=same).examples == ("'A-class' and 'a class'",)
    unused = [*content["categories"], {"id": 999, "name": "nothing"}]
    assert only(content, "no object and cannot", categories=unused).examples == (
        "'nothing' (id 999)",
    )
    empty = [*content["images"], {**content["images"][0], "id": 999, "file_name": "empty.jpg"}]
    assert only(content, "images have no object", images=empty).examples == ("empty.jpg",)
    empty[-1]["file_name"] = empty[0]["file_name"]
    assert any("files are listed twice" in problem for problem in problems(content, images=empty))
    (finding,) = find_doubtful({**content, "images": [*content["images"], content["images"][0]]})
    assert "ids of images occur twice" in finding.problem and finding.is_error


def test_ids_that_are_no_numbers_and_images_without_size(content):
    images = [{**i, "id": f"img-{i['id']}"} for i in content["images"]]
    entries = [{**e, "image_id": f"img-{e['image_id']}"} for e in content["annotations"]]
    first, second = find_doubtful({**content, "images": images, "annotations": entries})
    assert "images have no whole number as id" in first.problem and "'img-1'" in first.examples[0]
    assert "image 'img-1', expected a whole number" in second.examples[0]
    entries = [{key: e[key] for key in e if key != "id"} for e in content["annotations"]]
    (finding,) = find_doubtful({**content, "annotations": entries})
    assert finding.problem == "annotations have no whole number as id: number them"
    assert len(finding.examples) == 604
    images = [{"id": i["id"], "file_name": i["file_name"]} for i in content["images"]]
    (finding,) = find_doubtful({**content, "images": images})
    assert "image 1 has no 'height'" in finding.examples[0] and len(finding.examples) == 180


@pytest.mark.parametrize(
    ("table", "changes", "example"),
    [
        ("annotations", {"segmentation": [1, 1, 5, 1, 5, 5]}, "annotation 1 has the polygon 1,"),
        ("annotations", {"category_id": [1]}, "annotation 1 belongs to category [1]"),
        ("annotations", {"image_id": [1]}, "annotation 1 belongs to image [1]"),
        ("annotations", {"id": {}}, "annotation number 0: {}"),
        ("annotations", {"bbox": [1e308] * 4}, "annotation 1 has the box"),
        ("annotations", None, "annotation number 0: 'x'"),
        ("images", {"id": [1]}, "image number 0: [1]"),
        ("images", {"width": "9"}, "image 1 has width '9'"),
        ("images", {"file_name": ["a"]}, "image 1 has file_name ['a']"),
        ("images", {"file_name": 3}, "image 1 has file_name 3"),
        ("images", None, "image number 0: 'x'"),
        ("categories", {"id": None}, "category number 0: None"),
        ("categories", {"name": ["x"]}, "has the name ['x']"),
        ("categories", None, "category number 0: 'x'"),
    ],
)
def test_entries_of_any_type_are_listed(data, content, table, changes, example, tmp_path, capsys):
    entries = copy.deepcopy(content[table])
    entries[0] = "x" if changes is None else {**entries[0], **changes}
    (tmp_path / "broken.json").write_text(json.dumps({**content, table: entries}))
    arguments = ["--images", str(data / "images"), "--no-picture"]
    assert main(["stats", str(tmp_path / "broken.json"), *arguments]) == 1
    assert example in capsys.readouterr().out


def test_files_from_windows(data, content, tmp_path, capsys):
    images = [{**i, "file_name": i["file_name"].replace("/", "\\")} for i in content["images"]]
    (finding,) = find_doubtful({**content, "images": images}, data / "images")
    assert "write / instead of \\ in file_name" in finding.problem
    path = tmp_path / "windows.json"
    text = json.dumps(content, indent=1).replace("\n", "\r\n")
    path.write_bytes(text.encode("utf-8"))
    assert main(["stats", str(path), "--no-picture"]) == 0
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert main(["stats", str(path), "--no-picture"]) == 1
        message = capsys.readouterr().err
        assert "begins with a byte order mark" in message and f"read_text({encoding!r})" in message


def test_names_that_break_a_table(content):
    categories = copy.deepcopy(content["categories"])
    categories[0]["name"] = "a\nb"
    assert only(content, "line breaks", categories=categories).examples == ("'a\\nb'",)


def test_sizes_of_files(data, content):
    images = copy.deepcopy(content["images"])
    images[0]["width"] = 200
    (finding,) = find_doubtful({**content, "images": images}, data / "images")
    assert "96 x 96, annotated as 200 x 96" in finding.examples[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "nothing.json"], "no file 'nothing.json'"),
        (["stats", "nothing"], "no data set is registered as 'nothing'"),
        (["stats", "."], "'.' is a folder: give annotations"),
        (["replay", "nothing.pth"], "no file 'nothing.pth'"),
        (["stats", "nothing.pth"], "no file 'nothing.pth'"),
        (["example-data", "."], "--seed is -1"),
    ],
)
def test_bad_input(arguments, message, capsys):
    arguments += ["--seed", "-1"] if arguments[0] == "example-data" else []
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_broken_files(tmp_path, capsys):
    for text, message in (("[1]", "found a list"), ("{", "not valid JSON"), ("{}", "'images'")):
        (tmp_path / "file.json").write_text(text)
        assert main(["stats", str(tmp_path / "file.json")]) == 1
        assert message in capsys.readouterr().err


def test_example_data_does_not_overwrite(data, capsys):
    assert main(["example-data", str(data)]) == 1
    assert "train.json is there already: name another folder" in capsys.readouterr().err


def test_example_data_is_as_promised(data, content):
    assert [c["id"] for c in content["categories"]] == [3, 13, 23, 33, 43, 53, 63]
    assert all(c["name"].startswith("Nº") for c in content["categories"])
    assert all((data / "images" / i["file_name"]).is_file() for i in content["images"])
