"""Data sets of users: formats found out, odd ids, federated lists, unusable files."""

import copy
import json
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.data.detection_utils import transform_instance_annotations

from lt_detectron2.data import statistics as data_statistics
from lt_detectron2.data.datasets import annotation_json, custom, register_dataset
from lt_detectron2.data.datasets.annotation_json import load_lvis_records
from lt_detectron2.data.datasets.custom import register_annotations
from lt_detectron2.data.statistics import dataset_statistics
from lt_detectron2.errors import DatasetError
from lt_detectron2.evaluation import GroundTruth

POLYGON = [[1, 2, 31, 2, 31, 22]]


def annotation(number, image, category, **more):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [1, 2, 30, 20],
        "area": 600,
        "segmentation": POLYGON,
        **more,
    }


def coco():
    """Odd ids, categories out of order."""
    return {
        "images": [
            {"id": id, "file_name": f"{id}.jpg", "height": 50, "width": 60} for id in (7, 3, 5)
        ],
        "annotations": [
            annotation(1, 7, 40, iscrowd=0),
            annotation(2, 3, 11, iscrowd=0),
            annotation(9, 7, 40, iscrowd=1),
            annotation(4, 7, 25, iscrowd=0),
        ],
        "categories": [{"id": id, "name": f"c{id}"} for id in (40, 11, 25)],
    }


def lvis():
    dataset = coco()
    for entry in dataset["annotations"]:
        del entry["iscrowd"]
    for image in dataset["images"]:
        image.update(neg_category_ids=[11], not_exhaustive_category_ids=[40, 99])
    return dataset


@pytest.fixture
def register(tmp_path):
    names = []

    def write_and_register(content, name="a_users_set"):
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        annotation_json._summaries.clear()  # files are rewritten faster than the clock ticks
        data_statistics._known.clear()
        register_dataset(name, path, tmp_path / "images")
        names.append(name)
        return name

    yield write_and_register
    for name in set(names):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    data_statistics._known.clear()


@pytest.mark.parametrize("of_lvis", [True, False])
def test_boxes_of_whole_numbers_are_resized_as_others(tmp_path, of_lvis):
    """Detectron2 rounds what it resizes down where all numbers of a box or polygon are whole."""
    entry = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 3, 4, 1],
        "iscrowd": 0,
        "area": 4,
    }
    polygon = [1, 3, 5, 3, 5, 4, 1, 4]
    image = {"id": 1, "file_name": "a.png", "height": 20, "width": 20}
    if of_lvis:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    dataset = {
        "images": [image],
        "annotations": [{**entry, "segmentation": [polygon]}],
        "categories": [{"id": 1, "name": "a", "frequency": "r"}],
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(dataset))
    (record,) = custom.load_dataset("whole_numbers", str(path), str(tmp_path))
    half = T.TransformList([T.ResizeTransform(20, 20, 10, 10)])
    (annotation,) = record["annotations"]
    resized = transform_instance_annotations(annotation, half, (10, 10))
    assert resized["bbox"].tolist() == [0.5, 1.5, 2.5, 2]
    assert resized["segmentation"][0].tolist() == [0.5, 1.5, 2.5, 1.5, 2.5, 2, 0.5, 2]


def test_relative_paths_mean_the_working_folder_of_the_registration(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    names = [register_annotations("val/labels.json", "val/images")]
    try:
        metadata = MetadataCatalog.get(names[0])
        assert metadata.json_file == str(tmp_path / "val" / "labels.json")
        monkeypatch.chdir(tmp_path / "other")
        # The same words name other files here; an absolute path names the first ones again.
        names.append(register_annotations("val/labels.json", "val/images"))
        names.append(register_annotations(tmp_path / "val" / "labels.json", "../val/images"))
        names.append(register_annotations("val/labels.json", tmp_path / "other" / "val" / "images"))
        assert names[0] == names[2] != names[1] == names[3]
    finally:
        for name in set(names):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_registration_reads_nothing(tmp_path):
    register_dataset("a_users_set", "/nowhere/train.json", "~/images")
    try:
        metadata = MetadataCatalog.get("a_users_set")
        assert metadata.json_file == "/nowhere/train.json"
        assert metadata.image_root == str(Path("~/images").expanduser())
        register_dataset("a_users_set", Path("/nowhere/train.json"), "~/images")
        with pytest.raises(DatasetError, match="registered already, with annotations '/nowhere"):
            register_dataset("a_users_set", "/nowhere/other.json", "~/images")
        with pytest.raises(DatasetError, match="choose another name"):
            register_dataset("coco_2017_val", "/nowhere/train.json", "~/images")
        for ask in (
            lambda: metadata.thing_classes,
            lambda: metadata.get("evaluator_type"),
            lambda: DatasetCatalog.get("a_users_set"),
        ):
            with pytest.raises(DatasetError, match="'/nowhere/train.json' is missing"):
                ask()
    finally:
        DatasetCatalog.remove("a_users_set")
        MetadataCatalog.remove("a_users_set")


@pytest.mark.parametrize("make, kind", [(coco, "coco"), (lvis, "lvis")])
def test_metadata_follow_the_file(register, make, kind):
    metadata = MetadataCatalog.get(register(make()))
    assert metadata.evaluator_type == kind
    assert metadata.thing_classes == ["c11", "c25", "c40"]
    assert metadata.thing_dataset_id_to_contiguous_id == {11: 0, 25: 1, 40: 2}
    assert metadata.as_dict()["evaluator_type"] == kind


def test_coco_records_are_those_of_detectron2(register, tmp_path):
    name = register(coco())
    records = DatasetCatalog.get(name)
    path = MetadataCatalog.get(name).json_file
    try:
        assert records == load_coco_json(path, str(tmp_path / "images"), "a_reference_set")
    finally:
        MetadataCatalog.remove("a_reference_set")
    assert [record["image_id"] for record in records] == [3, 5, 7]
    assert [a["category_id"] for a in records[2]["annotations"]] == [2, 2, 1]
    statistics = dataset_statistics((name,))
    assert statistics.instance_count.tolist() == [1, 1, 1]  # the crowd is not counted
    assert statistics.class_names == ("c11", "c25", "c40")


def test_lvis_records_by_hand(register, tmp_path):
    records = DatasetCatalog.get(register(lvis()))
    assert [record["image_id"] for record in records] == [3, 5, 7]
    assert records[2] == {
        "file_name": str(tmp_path / "images" / "7.jpg"),
        "height": 50,
        "width": 60,
        "image_id": 7,
        "neg_category_ids": [0],
        "not_exhaustive_category_ids": [2],  # 99 is not among the categories
        "annotations": [
            {"bbox": [1, 2, 30, 20], "bbox_mode": 1, "category_id": 2, "segmentation": POLYGON},
            {"bbox": [1, 2, 30, 20], "bbox_mode": 1, "category_id": 2, "segmentation": POLYGON},
            {"bbox": [1, 2, 30, 20], "bbox_mode": 1, "category_id": 1, "segmentation": POLYGON},
        ],
    }
    # The evaluator reads the same file.
    ground_truth = GroundTruth.from_lvis(lvis())
    assert ground_truth.category_ids.tolist() == [11, 25, 40]


def test_lvis_records_of_contiguous_ids_are_those_of_detectron2(tmp_path):
    dataset = lvis()
    numbers = {11: 1, 25: 2, 40: 3}
    for category in dataset["categories"]:
        category["id"] = numbers[category["id"]]
    for entry in dataset["annotations"]:
        entry["category_id"] = numbers[entry["category_id"]]
    for image in dataset["images"]:
        image.update(neg_category_ids=[1], not_exhaustive_category_ids=[3])
        image["coco_url"] = f"http://images.example/val2017/{image.pop('file_name')}"
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(dataset))
    expected = load_lvis_json(str(path), f"{tmp_path}/")
    for record in expected:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            record[key] = [id - 1 for id in record[key]]
    assert load_lvis_records(path, tmp_path) == expected


def test_names_of_images(tmp_path):
    """LVIS v0.5 gives both; its file names are those of COCO 2014, its URLs those of 2017."""
    dataset = lvis()
    for image in dataset["images"]:
        image["coco_url"] = f"http://images.example/train2017/{image['id']:012d}.jpg"
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(dataset))
    records = load_lvis_records(path, tmp_path)
    assert records[0]["file_name"] == str(tmp_path / "train2017" / "000000000003.jpg")
    (tmp_path / "3.jpg").touch()
    assert load_lvis_records(path, tmp_path)[2]["file_name"] == str(tmp_path / "7.jpg")


def test_run_lengths_crowds_and_ignored_annotations(register):
    mask = np.zeros((50, 60), dtype=np.uint8)
    mask[10:20, 10:40] = 1
    encoded = pycocotools.mask.encode(np.asfortranarray(mask))
    runs = [510, *[10, 40] * 29, 10, 1030]  # by columns
    dataset = lvis()
    first, second, third, fourth = dataset["annotations"]
    first["segmentation"] = {"size": [50, 60], "counts": runs}
    second["segmentation"] = {"size": [50, 60], "counts": encoded["counts"].decode()}
    third.update(segmentation=None, iscrowd=1)
    fourth["ignore"] = 1
    name = register(dataset)
    image_3, _, image_7 = DatasetCatalog.get(name)
    for entry in (image_3["annotations"][0], image_7["annotations"][0]):
        np.testing.assert_array_equal(pycocotools.mask.decode(entry["segmentation"]), mask)
    assert "segmentation" not in image_7["annotations"][1]
    assert [a.get("iscrowd", 0) for a in image_7["annotations"]] == [0, 1, 1]
    assert dataset_statistics((name,)).instance_count.tolist() == [1, 0, 1]


def test_a_file_of_test_images_has_no_annotations(register):
    for dataset in (coco(), lvis()):
        del dataset["annotations"]
        records = DatasetCatalog.get(register(dataset))
        assert len(records) == 3 and not any(record["annotations"] for record in records)


def changed(make, change):
    dataset = copy.deepcopy(make())
    change(dataset)
    return dataset


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"images": [', "a_users_set.json: not valid JSON"),
        ("[]", "found a list, and a file of results is no annotation file"),
        ({"images": [{"id": 1}]}, "there is no list 'categories', only .'images'."),
        (changed(lvis, lambda d: d["categories"][0].pop("id")), "category .* has no 'id'"),
        (changed(lvis, lambda d: d["categories"][0].update(id=11)), "category id 11 occurs 2"),
        (changed(lvis, lambda d: d["images"][0].update(id=3)), "image id 3 occurs 2 times"),
        (changed(lvis, lambda d: d["images"][0].pop("height")), "image 7 has no 'height'"),
        (changed(lvis, lambda d: d["images"][1].pop("file_name")), "neither file_name nor"),
        (changed(lvis, lambda d: d["images"][0].pop("file_name")), "image 7 has no 'file_name'"),
        (changed(lvis, lambda d: d["annotations"][0].update(id=2)), "annotation id 2 occurs 2"),
        (
            changed(lvis, lambda d: d["annotations"][0].update(image_id=8)),
            "annotation 1 belongs to image 8, which the file does not list",
        ),
        (
            changed(lvis, lambda d: d["annotations"][0].update(category_id=8)),
            "annotation 1 belongs to category 8, which the file does not list",
        ),
        (changed(lvis, lambda d: d["annotations"][0].pop("bbox")), "annotation 1 has no 'bbox'"),
        (
            changed(lvis, lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4]])),
            "annotation 1 has a polygon of 4 numbers",
        ),
        (
            changed(
                lvis,
                lambda d: d["annotations"][0].update(
                    segmentation={"size": [50, 60], "counts": [2990]}
                ),
            ),
            "annotation 1 has run lengths of 2990 pixels, expected 50 x 60",
        ),
        (changed(coco, lambda d: d["annotations"][0].update(id=2)), "annotation id 2 occurs 2"),
        (changed(coco, lambda d: d["images"][0].pop("file_name")), "image 7 has no 'file_name'"),
        (changed(coco, lambda d: d["annotations"][0].update(category_id=8)), "to category 8"),
        (changed(coco, lambda d: d["annotations"][0].update(ignore=1)), "set its iscrowd to 1"),
        (
            changed(lvis, lambda d: d["images"][1].pop("neg_category_ids")),
            "lacks 'neg_category_ids'",
        ),
        (changed(coco, lambda d: d["images"][0].update(neg_category_ids=[])), "add both lists"),
    ],
)
def test_unusable_files_are_explained(register, content, message):
    name = register(content)
    with pytest.raises(DatasetError, match=message) as error:
        dataset_statistics((name,))
    assert "a_users_set.json" in str(error.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read .*give a JSON file"):
        load_lvis_records(tmp_path, tmp_path)
