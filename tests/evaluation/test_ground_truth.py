"""The annotation index: what it keeps, and which files it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lt_detectron2.evaluation import GroundTruth, groups_from_frequency, read_annotations
from lt_detectron2.evaluation.annotations import NOT_EXHAUSTIVE, POSITIVE, VERIFIED

from .official import as_coco
from .small_set import annotation, category, image, small_set


def test_columns():
    dataset = {
        "images": [image(7, neg_category_ids=[5, 99]), image(3, not_exhaustive_category_ids=[2])],
        "annotations": [
            annotation(11, 7, 2),
            annotation(4, 3, 5),
            annotation(9, 3, 2, ignore=1),
            annotation(8, 3, 2),
            annotation(10, 7, 5, area=0),
        ],
        "categories": [category(5, "f"), category(2, "c")],
    }
    index = GroundTruth.from_lvis(dataset)
    assert index.image_ids.tolist() == [3, 7]
    assert index.category_ids.tolist() == [2, 5]
    assert index.annotation_ids.tolist() == [9, 8, 4, 11]
    assert index.ignored.tolist() == [True, False, False, False]
    seen = VERIFIED | POSITIVE
    assert index.cell_flags.tolist() == [[seen | NOT_EXHAUSTIVE, seen], [seen, VERIFIED]]
    assert index.instance_count.tolist() == [2, 1]
    assert index.image_count.tolist() == [2, 1]
    assert groups_from_frequency(index).labels() == ["c", "f"]
    assert [column.tolist() for column in index.cells] == [[0, 1, 2], [0, 2, 3], [2, 1, 1]]


def test_fingerprint_tells_apart_what_detections_count():
    dataset, _ = small_set()

    def fingerprint(**change):
        first, *others = dataset["annotations"]
        changed = {**dataset, "annotations": [{**first, **change}, *others]}
        read = GroundTruth.from_coco if "iscrowd" in change else GroundTruth.from_lvis
        return read(as_coco(changed) if "iscrowd" in change else changed).fingerprint

    assert fingerprint() == fingerprint(segmentation=[[0, 0, 5, 0, 5, 5]])
    assert fingerprint() != fingerprint(bbox=[0.0, 0.0, 5.0, 5.0])
    assert fingerprint() == fingerprint(ignore=0) != fingerprint(ignore=1)
    assert fingerprint(iscrowd=0) != fingerprint(iscrowd=1)
    # An ignored object is no crowd.
    index = GroundTruth.from_lvis(dataset)
    marked = np.arange(len(index.image)) == 1
    ignored, crowd = (replace(index, **{name: marked}) for name in ("ignored", "crowd"))
    assert ignored.fingerprint != crowd.fingerprint


def test_groups_are_unknown_without_frequency():
    dataset, _ = small_set()
    for entry in dataset["categories"]:
        del entry["frequency"]
    groups = groups_from_frequency(GroundTruth.from_lvis(dataset))
    assert groups.labels() == ["", "", ""]
    assert "nowhere" in groups.source


def test_strangers_are_not_evaluated(caplog):
    dataset, _ = small_set()
    dataset["annotations"] += [annotation(70, 99, 1), annotation(71, 1, 99)]
    assert len(GroundTruth.from_lvis(dataset).boxes) == 3
    assert "2 annotations belong to images or categories that the file does not list" in caplog.text


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("annotations"), "a list 'annotations' in an LVIS annotation file, found"),
        (
            lambda d: d["images"].append(without(image(9), "neg_category_ids")),
            "expected 'neg_category_ids' for every image, image 9 has only .* use a COCO evaluator",
        ),
        (
            lambda d: d["images"].append(without(image(9), "not_exhaustive_category_ids")),
            "expected 'not_exhaustive_category_ids' for every image",
        ),
        (lambda d: d["images"].append(image(1)), "image id 1 occurs 2 times"),
        (lambda d: d["annotations"].append(annotation(3, 1, 1)), "annotation id 3 occurs 2"),
        (lambda d: d["categories"].append(category(2)), "category id 2 occurs 2"),
        (lambda d: d["annotations"].append({"id": 9}), "every annotation to have 'image_id'"),
        (
            lambda d: d["annotations"].append(without(annotation(9, 1, 1), "area")),
            "every annotation to have 'area'",
        ),
        (
            lambda d: d["annotations"].append(annotation(9, 1, 1, [1, 2, float("nan"), 3], area=1)),
            r"four finite numbers .*annotation 9 has \[1, 2, nan, 3\]",
        ),
        (
            lambda d: d["annotations"].append({**annotation(9, 1, 1), "bbox": [1, 2]}),
            r"four finite numbers .*annotation 9 has \[1, 2\]",
        ),
        (
            lambda d: d["annotations"].append({**annotation(9, 1, 1), "bbox": None}),
            "four finite numbers .*annotation 9 has None",
        ),
        (
            lambda d: d["annotations"].append({**annotation(9, 1, 1), "segmentation": []}),
            "annotation 9 of image 1 lacks one: evaluate only the task 'bbox'",
        ),
        (
            lambda d: d["annotations"][0]["segmentation"].append([1, 2, 3, float("inf"), 5, 6]),
            "every polygon to be a list of finite numbers .*annotation 1 has others",
        ),
        (
            lambda d: [entry.update(id=f"image {entry['id']}") for entry in d["images"]],
            "each image to have an integer as id, image number 0 has 'image 1': number them",
        ),
        (
            lambda d: d["annotations"][1].update(image_id="2"),
            "an integer as image_id, annotation 2 has '2': number them",
        ),
        (lambda d: d["annotations"][1].update(area=None), "annotation 2 has None: give the area"),
    ],
)
def test_unusable_files(change, message):
    dataset, _ = small_set()
    change(dataset)
    with pytest.raises(ValueError, match=message):
        GroundTruth.from_lvis(dataset, with_masks=True)


def test_unreadable_files(tmp_path):
    path = tmp_path / "annotations.json"
    with pytest.raises(ValueError, match="found no such file"):
        read_annotations(str(path))
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match="annotations.json cannot be read .*incomplete"):
        read_annotations(str(path))
    path.write_text("[]")
    with pytest.raises(ValueError, match="found a list, and files of results have none: pass the"):
        read_annotations(str(path))
    path.write_text(json.dumps(small_set()[0]))
    assert GroundTruth.from_lvis(read_annotations(str(path))).num_images == 3


def test_masks_follow_the_annotations():
    dataset, _ = small_set()
    box = [3.0, 4.0, 20.0, 10.0]
    dataset["annotations"].insert(0, annotation(9, 2, 2, box))
    index = GroundTruth.from_lvis(dataset, with_masks=True)
    np.testing.assert_array_equal(index.masks.boxes(), index.boxes)
    assert index.annotation_ids.tolist() == [1, 2, 9, 3]
