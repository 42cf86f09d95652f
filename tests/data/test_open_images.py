"""Open Images as columns: records, counts, hierarchy, memory, and files that cannot be used."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode
from PIL import Image

from lt_detectron2.data import statistics as data_statistics
from lt_detectron2.data.datasets import csv_columns, open_images, register_open_images
from lt_detectron2.data.datasets.open_images import challenge_files
from lt_detectron2.data.datasets.open_images_files import EXIF_ORIENTATION, read_hierarchy
from lt_detectron2.data.repeat_factors import class_repeat_factors
from lt_detectron2.data.statistics import count_classes, dataset_statistics
from lt_detectron2.errors import DatasetError
from tests.golden import load_golden

TRAIN, VAL = "openimages_challenge2019_train", "openimages_challenge2019_val"
SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_open_images.py"

CLASSES = '/m/pet,Pet\n/m/0dog,Dog\n/m/9mouse,Mouse\n/m/1mouse,Mouse\n/m/cart,"Cart, wagon"\n'
BOXES = """ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf
c3,/m/0dog,0.1,0.5,0.2,0.8,0
a1,/m/1mouse,0.25,0.75,0,1,1
a1,/m/0dog,0,0.5,0.5,1,0
b2,/m/cart,0.5,0.5,0.1,0.9,0
c3,/m/0dog,0.3,0.6,0.4,0.7,0
c3,/m/9mouse,0.3,0.6,0.4,0.7,0
c3,/m/cart,0.3,0.6,0.4,0.4,0
"""
LABELS = """ImageID,LabelName,Confidence
a1,/m/1mouse,1
a1,/m/0dog,1
a1,/m/cart,0
d4,/m/pet,0
d4,/m/unheard_of,1
a1,/m/0dog,1
"""
HIERARCHY = {
    "LabelName": "/m/entity",
    "Subcategory": [
        {"LabelName": "/m/pet", "Subcategory": [{"LabelName": "/m/0dog"}, {"LabelName": "/m/m"}]},
        {"LabelName": "/m/device", "Subcategory": [{"LabelName": "/m/m"}]},
    ],
}
SIZES = {"a1": (100, 80), "b2": (60, 90), "c3": (50, 40), "d4": (20, 20)}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    data_statistics._known.clear()
    for split in ("train", "val"):
        files = challenge_files(split)
        Path(files.boxes).parent.mkdir(parents=True, exist_ok=True)
        Path(files.boxes).write_text(BOXES)
        Path(files.labels).write_text(LABELS)
        Path(files.classes).write_text(CLASSES)
        Path(files.hierarchy).write_text(json.dumps(HIERARCHY))
        Path(files.images).mkdir(parents=True)
        for id, size in SIZES.items():
            Image.new("RGB", size).save(Path(files.images, f"{id}.jpg"))
    yield tmp_path
    data_statistics._known.clear()


def test_records_by_hand(root):
    records = DatasetCatalog.get(VAL)
    assert len(records) == 4
    assert records[0] == {
        "file_name": str(root / "openimages/validation/a1.jpg"),
        "image_id": "a1",
        "width": 100,
        "height": 80,
        "pos_category_ids": [1, 3],
        "neg_category_ids": [4],
        "annotations": [
            {
                "bbox": [25, 0, 75, 80],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 3,
                "iscrowd": 0,
                "is_group_of": True,
            },
            {
                "bbox": [0, 40, 50, 80],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 1,
                "iscrowd": 0,
                "is_group_of": False,
            },
        ],
    }
    assert [a["category_id"] for a in records[2]["annotations"]] == [1, 1, 2, 4]  # two runs
    np.testing.assert_allclose(records[2]["annotations"][0]["bbox"], [5, 8, 25, 32])
    # An image that has labels alone belongs to an evaluation.
    assert records[-1]["image_id"] == "d4" and records[-1]["annotations"] == []
    assert records[-1]["neg_category_ids"] == [0] and records[-1]["pos_category_ids"] == []


def test_training_leaves_out_images_without_a_box(root):
    records = DatasetCatalog.get(TRAIN)
    assert [record["image_id"] for record in records] == ["a1", "c3"]
    assert [a["category_id"] for a in records[1]["annotations"]] == [1, 1, 2]  # the cart is flat
    Path(challenge_files("train").labels).unlink()
    assert "pos_category_ids" not in DatasetCatalog.get(TRAIN)[0]
    Path(challenge_files("val").labels).unlink()
    with pytest.raises(DatasetError, match="human-imagelabels.csv' is missing"):
        DatasetCatalog.get(VAL)


def test_records_are_a_sequence(root):
    records = DatasetCatalog.get(VAL)
    assert [record["image_id"] for record in records] == ["a1", "b2", "c3", "d4"]
    assert records[1:3] == [records[1], records[2]] and records[-4] == records[0]
    with pytest.raises(IndexError):
        records[4]
    assert pickle.loads(pickle.dumps(records))[2] == records[2]  # for workers that are spawned
    assert DatasetFromList(records)[2] == records[2]
    records[0]["annotations"].clear()
    assert records[0]["annotations"]


def test_counts_equal_those_of_the_records(root):
    statistics = dataset_statistics((TRAIN,))
    assert statistics.instance_count.tolist() == [0, 3, 1, 1, 0]  # no cart has an area
    assert statistics.image_count.tolist() == [0, 2, 1, 1, 0]
    assert statistics.num_images == 2
    assert statistics.class_names == ("Pet", "Dog", "Mouse", "Mouse", "Cart, wagon")
    slow = count_classes(list(DatasetCatalog.get(TRAIN)), 5)
    assert statistics.fingerprint() == slow.fingerprint()
    of_val = DatasetCatalog.get(VAL).class_statistics()
    assert of_val.fingerprint() == statistics.fingerprint()


def test_counting_makes_no_records_and_is_cached(root, monkeypatch):
    monkeypatch.setattr(
        open_images.OpenImagesRecords, "_record", lambda *arguments: pytest.fail("a dict")
    )
    dataset_statistics((TRAIN,))
    assert list((root / "openimages/annotations").glob("*.class_statistics.json"))
    data_statistics._known.clear()
    monkeypatch.setattr(data_statistics, "parse_once", lambda name: pytest.fail("not cached"))
    assert dataset_statistics((TRAIN,)).num_images == 2


def test_counts_follow_the_list_of_classes(root):
    """Its order numbers the classes of the boxes, whose file stays as it is."""
    before = dataset_statistics((TRAIN,)).instance_count
    path = Path(challenge_files("train").classes)
    path.write_text("\n".join(reversed(CLASSES.splitlines())) + "\n")
    data_statistics._known.clear()
    assert dataset_statistics((TRAIN,)).instance_count.tolist() == before.flip(0).tolist()


def test_files_are_read_once_until_they_change(root, monkeypatch):
    records = DatasetCatalog.get(VAL)
    assert DatasetCatalog.get(VAL) is records
    Path(challenge_files("val").boxes).write_text(BOXES + "b2,/m/pet,0,1,0,1,0\n")
    assert len(DatasetCatalog.get(VAL)[1]["annotations"]) == 2


def test_detectron2_trains_on_it(root):
    dataset = get_detection_dataset_dicts([TRAIN])
    assert isinstance(dataset, torch.utils.data.Dataset) and len(dataset) == 2
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset, 0.9)
    by_class = class_repeat_factors(dataset_statistics((TRAIN,)), 0.9)
    expected = torch.stack([by_class[[3, 1]].max(), by_class[[1, 2]].max()])
    torch.testing.assert_close(factors, expected.float())

    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (TRAIN,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    batch = next(iter(build_detection_train_loader(cfg)))
    assert {image["image_id"] for image in batch} <= {"a1", "c3"}
    assert all(len(image["instances"]) for image in batch)


def test_metadata(root):
    metadata = MetadataCatalog.get(VAL)
    assert metadata.evaluator_type == "open_images"
    assert metadata.class_ids == ["/m/pet", "/m/0dog", "/m/9mouse", "/m/1mouse", "/m/cart"]
    assert metadata.thing_classes[2:] == ["Mouse", "Mouse", "Cart, wagon"]
    assert metadata.thing_dataset_id_to_contiguous_id["/m/1mouse"] == 3
    assert metadata.hierarchy == {
        "/m/0dog": ["/m/pet"],
        "/m/device": [],
        "/m/m": ["/m/device", "/m/pet"],
        "/m/pet": [],
    }
    assert metadata.get("json_file") is None
    assert metadata.as_dict()["annotation_file"] == challenge_files("val").boxes


def test_hierarchy_and_boxes_of_the_recorded_case(tmp_path):
    """Ground truth, expanded by what is read here, is that of the official script."""
    golden = load_golden("openimages_eval")
    files = open_images.OpenImagesFiles(
        boxes=str(tmp_path / "boxes.csv"),
        labels=str(tmp_path / "labels.csv"),
        classes=str(tmp_path / "classes.csv"),
        hierarchy=str(tmp_path / "hierarchy.json"),
        sizes=str(tmp_path / "sizes.csv"),
        images=str(tmp_path),
    )
    contents = {
        files.boxes: str(golden["csv_boxes"]),
        files.labels: str(golden["csv_labels"]),
        files.classes: str(golden["csv_class_descriptions"]),
        files.hierarchy: str(golden["hierarchy_json"]),
        files.sizes: "ImageID,Width,Height\n" + "".join(f"{i},100,100\n" for i in "ABCDE"),
    }
    for path, text in contents.items():
        Path(path).write_text(text)
    register_open_images("recorded_open_images", files, only_with_boxes=False)
    try:
        metadata = MetadataCatalog.get("recorded_open_images")
        records = DatasetCatalog.get("recorded_open_images")
        class_of = metadata.thing_dataset_id_to_contiguous_id
        assert list(class_of) == golden["classes"].tolist()
        expanded, labels = [], set()
        for record in records:
            assert record["image_id"] in golden["image_ids"]
            for annotation in record["annotations"]:
                for index in sorted(ancestors(metadata, annotation["category_id"])):
                    box = [round(value, 9) for value in annotation["bbox"]]
                    expanded.append((record["image_id"], index, *box, annotation["is_group_of"]))
            for index in record["pos_category_ids"]:
                labels |= {(record["image_id"], a, 1) for a in ancestors(metadata, index)}
            for index in record["neg_category_ids"]:
                below = [d for d in range(len(class_of)) if index in ancestors(metadata, d)]
                labels |= {(record["image_id"], d, 0) for d in below}
        assert sorted(expanded) == sorted(
            (image, index, *box, bool(is_group))
            for image, index, box, is_group in zip(
                golden["gt_expanded_image"].tolist(),
                golden["gt_expanded_class"].tolist(),
                golden["gt_expanded_box_xyxy"].round(9).tolist(),
                golden["gt_expanded_group_of"].tolist(),
            )
        )
        assert labels == set(
            zip(
                golden["labels_expanded_image"].tolist(),
                golden["labels_expanded_class"].tolist(),
                golden["labels_expanded_verdict"].tolist(),
            )
        )
        with pytest.raises(DatasetError, match="is registered already"):
            register_open_images("recorded_open_images", files, only_with_boxes=True)
    finally:
        DatasetCatalog.remove("recorded_open_images")
        MetadataCatalog.remove("recorded_open_images")


def ancestors(metadata, index):
    """Classes above a class, and the class itself."""
    class_of = metadata.thing_dataset_id_to_contiguous_id
    found, stack = set(), [metadata.class_ids[index]]
    while stack:
        mid = stack.pop()
        found.add(class_of[mid])
        stack += metadata.hierarchy[mid]
    return found


def test_columns_of_a_million_boxes_would_be_small(root):
    """Growth of memory, on 30,000 boxes: 12 million must fit into a few GiB."""
    generator = np.random.default_rng(0)
    corners = np.sort(generator.random((30_000, 2, 2)), axis=2).round(6)
    lines = [
        f"{i // 7:016x},/m/0dog,{x[0]},{x[1]},{y[0]},{y[1]},0" for i, (x, y) in enumerate(corners)
    ]
    path = Path(challenge_files("train").boxes)
    path.write_text(BOXES.splitlines()[0] + "\n" + "\n".join(lines))
    records = DatasetCatalog.get(TRAIN)
    assert len(records.classes) == 30_000
    assert records.nbytes / len(records.classes) < 50
    np.testing.assert_array_equal(records.boxes, corners.transpose(0, 2, 1).reshape(-1, 4))


@pytest.mark.parametrize("rows_per_block", [1, 2, 4])
def test_blocks_do_not_show(root, monkeypatch, rows_per_block):
    expected = list(DatasetCatalog.get(VAL))
    open_images._read_records.cache_clear()
    monkeypatch.setattr(csv_columns.read_blocks, "__defaults__", (rows_per_block,))
    assert list(DatasetCatalog.get(VAL)) == expected


def test_other_columns_and_orders_are_accepted(root, monkeypatch):
    """The files of other releases have more columns."""
    expected = list(DatasetCatalog.get(VAL))
    rows = [line.split(",") for line in BOXES.splitlines()]
    for split_rows, extra in ((rows[:1], ["Source", "Confidence"]), (rows[1:], ["xclick", "1"])):
        for row in split_rows:
            row[:] = [row[0], *extra, *row[:0:-1]]
    path = Path(challenge_files("val").boxes)
    path.write_text("\n".join(",".join(row) for row in rows) + "\n\n\n")
    assert list(DatasetCatalog.get(VAL)) == expected
    with monkeypatch.context() as patch:
        patch.setattr(csv_columns.read_blocks, "__defaults__", (1,))
        open_images._read_records.cache_clear()
        assert list(DatasetCatalog.get(VAL)) == expected


def test_sixteen_folders_of_images(root):
    files = challenge_files("train")
    for letter in "ac":
        Path(f"{files.images}_{letter}").mkdir()
    for path in Path(files.images).iterdir():
        target = Path(f"{files.images}_{path.name[0]}")
        path.rename(target / path.name) if target.is_dir() else path.unlink()
    Path(files.images).rmdir()
    assert DatasetCatalog.get(TRAIN)[1]["file_name"].endswith("/train_c/c3.jpg")
    assert DatasetCatalog.get(TRAIN)[1]["width"] == 50


def test_sizes_are_listed_by_a_command(root, capsys):
    path = Path(challenge_files("val").images, "b2.jpg")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # lies on its side; Detectron2 will turn it
    Image.new("RGB", SIZES["b2"]).save(path, exif=exif)
    spec = importlib.util.spec_from_file_location("prepare_open_images", SCRIPT)
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    prepare.main(["val"])
    assert "val: wrote" in capsys.readouterr().out
    sizes = Path(challenge_files("val").sizes)
    assert sizes.read_text().splitlines() == [
        "ImageID,Width,Height",
        "a1,100,80",
        "b2,90,60",
        "c3,50,40",
        "d4,20,20",
    ]
    path.unlink()  # no image is opened any more
    record = DatasetCatalog.get(VAL)[1]
    assert (record["width"], record["height"]) == (90, 60)

    sizes.unlink()
    with pytest.raises(SystemExit) as exit:
        prepare.main(["val"])
    assert exit.value.code == 2 and "b2.jpg' is missing or damaged" in capsys.readouterr().err
    assert not list(sizes.parent.glob("*sizes*"))


def test_sizes_equal_those_of_detectron2(root):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 40
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 8
    Image.new("RGB", (30, 70)).save(Path(challenge_files("val").images, "a1.jpg"), exif=exif)
    mapper = DatasetMapper(cfg, is_train=False)
    for record in DatasetCatalog.get(VAL):
        mapper(record)  # raises where height and width are not those of the image


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("boxes", "0.25,0.75", "0.25,0.7x", "boxes.csv, line 3: 'a1,.*0.7x,0,1,1' cannot be read"),
        ("boxes", "0.25,0.75,0,1,1", "0.25", "line 3: 'a1,/m/1mouse,0.25' cannot be read as"),
        ("boxes", "0.25,0.75", "0.75,0.25", "image a1 has the box .*expected XMin <= XMax"),
        ("boxes", "0.25,0.75", "25,75", r"in \[0, 1\], shares of width and height"),
        ("boxes", "0.25,0.75", "nan,0.75", "mend or remove it"),
        ("boxes", "/m/1mouse", "/m/none", "box of class '/m/none', which is not among the 5"),
        ("boxes", "a1", "a" * 40, "ImageID 'a{31}.*'... is longer than the 31 bytes expected"),
        ("boxes", "IsGroupOf", "IsGroup", "IsGroupOf missing among"),
        ("boxes", BOXES, "", "missing among"),
        ("boxes", BOXES[BOXES.index("\n") :], "\n", "no rows in it"),
        ("labels", "a1,/m/cart,0", "a1,/m/cart,0.7", "label of confidence 0.7, expected 1"),
        ("classes", "/m/pet,Pet", "id,name", "line 1: expected a MID that occurs once"),
        ("classes", "/m/0dog,Dog", "/m/pet,Dog", "line 2: expected a MID that occurs once"),
        ("classes", CLASSES, "", "no classes in it"),
    ],
)
def test_unusable_files_are_explained(root, file, old, new, message):
    path = Path(getattr(challenge_files("val"), file))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DatasetError, match=message.replace("boxes.csv", ".*bbox.csv")):
        DatasetCatalog.get(VAL)


def test_missing_files_are_explained(root):
    for file in ("boxes", "classes"):
        path = Path(getattr(challenge_files("val"), file))
        text = path.read_text()
        path.unlink()
        with pytest.raises(DatasetError, match="check.py` says from where"):
            DatasetCatalog.get(VAL)
        path.write_text(text)
    Path(challenge_files("val").images, "a1.jpg").unlink()
    with pytest.raises(DatasetError, match="a1.jpg' is missing or damaged"):
        DatasetCatalog.get(VAL)[0]


def test_unusable_hierarchies_are_explained(tmp_path):
    path = tmp_path / "hierarchy.json"
    with pytest.raises(DatasetError, match="is missing"):
        read_hierarchy(path)
    for text in ("[]", "{", '{"LabelName": "x"}', '{"Subcategory": [{"Name": 1}]}'):
        path.write_text(text)
        with pytest.raises(DatasetError, match="nested objects with LabelName and Subcategory"):
            read_hierarchy(path)
