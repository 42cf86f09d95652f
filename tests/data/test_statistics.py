"""Counts of the annotations that are trained on, their cache, and what is refused."""

import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode

from lt_detectron2.data import statistics as data_statistics
from lt_detectron2.data.repeat_factors import auto_threshold, class_repeat_factors
from lt_detectron2.data.statistics import (
    count_classes,
    dataset_statistics,
    prepare_statistics,
    read_statistics,
)
from lt_detectron2.data.validate import is_visible, usable_records
from lt_detectron2.engine.setup import load_config
from lt_detectron2.errors import ConfigError, DatasetError
from lt_detectron2.statistics import ClassStatistics

CATEGORIES = {4: "ant", 9: "bee", 11: "cat"}


def annotation(number, image, category=4, bbox=(1, 2, 30, 40), crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(bbox),
        "area": 9,
        "iscrowd": crowd,
    }


def coco(annotations, images=4):
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 60, "width": 80} for i in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
    }


@pytest.fixture
def register(tmp_path):
    names = []

    def write_and_register(content, name="long_tail_test_set"):
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        if name not in names:
            register_coco_instances(name, {}, str(path), str(tmp_path))
            names.append(name)
        data_statistics._known.clear()
        return name, path

    yield write_and_register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    data_statistics._known.clear()


GOOD = [
    annotation(1, 0, 4),
    annotation(2, 0, 4),
    annotation(3, 0, 9),
    annotation(4, 1, 4),
    annotation(5, 2, 9, crowd=1),
]


def test_counts_by_hand(register):
    name, _ = register(coco(GOOD))
    statistics = dataset_statistics((name,))
    assert statistics.instance_count.tolist() == [3, 1, 0]
    assert statistics.image_count.tolist() == [2, 1, 0]
    assert statistics.num_images == 2  # neither the image with a crowd only nor the empty one
    assert statistics.class_names == ("ant", "bee", "cat")


def test_cache_follows_the_content(register, monkeypatch):
    name, path = register(coco(GOOD))
    dataset_statistics((name,))
    (cache,) = path.parent.glob("*.class_statistics.json")
    data_statistics._known.clear()
    with monkeypatch.context() as patch:
        patch.setattr(data_statistics, "parse_once", lambda name: pytest.fail("not cached"))
        assert dataset_statistics((name,)).num_images == 2

    name, path = register(coco(GOOD + [annotation(6, 3, 11)]))
    assert dataset_statistics((name,)).instance_count.tolist() == [3, 1, 1]

    cache.write_text("{ not json")
    data_statistics._known.clear()
    assert dataset_statistics((name,)).instance_count.tolist() == [3, 1, 1]


def test_counts_of_an_own_loader_follow_the_loader(register, monkeypatch):
    """It may number classes as it likes, whatever lies in the file that its metadata name."""
    _, path = register(coco(GOOD))
    name, record = "long_tail_own_loader", {"image_id": 1, "height": 60, "width": 80}
    metadata = MetadataCatalog.get(name)
    metadata.json_file = str(path)
    boxes = [{"bbox": [1, 2, 30, 40], "category_id": c} for c in (0, 0, 1)]
    try:
        for classes, counts in ((["cat", "dog"], [2, 1]), (["dog", "cat"], [1, 2])):
            new = [
                {**b, "category_id": classes.index(["cat", "dog"][b["category_id"]])} for b in boxes
            ]
            DatasetCatalog.register(name, lambda new=new: [{**record, "annotations": new}])
            metadata.__dict__["thing_classes"] = classes
            data_statistics._known.clear()
            assert dataset_statistics((name,)).instance_count.tolist() == counts
            DatasetCatalog.remove(name)
    finally:
        MetadataCatalog.remove(name)
    assert not list(path.parent.glob("*.class_statistics.json"))


def test_read_only_folder_is_no_obstacle(register, monkeypatch, caplog):
    name, _ = register(coco(GOOD))

    def refuse(*arguments):
        raise PermissionError("read-only")

    monkeypatch.setattr(data_statistics, "replacing", refuse)
    assert dataset_statistics((name,)).num_images == 2


def test_several_sets_are_added(register):
    first, _ = register(coco(GOOD))
    second, _ = register(coco([annotation(1, 0, 11)]), "long_tail_second_set")
    both = dataset_statistics((first, second))
    assert both.instance_count.tolist() == [3, 1, 1] and both.num_images == 3


def test_a_class_without_images_is_named(register, caplog):
    name, _ = register(coco(GOOD))
    with caplog.at_level("WARNING"):
        dataset_statistics((name,))
    assert "1 of 3 classes have no training image (cat)" in caplog.text


@pytest.mark.parametrize(
    "content, expected",
    [
        ("{ this is not JSON", "is not valid JSON"),
        (coco([annotation(1, 0, 5)]), "5"),
        (coco([annotation(1, 0, 4, (1, 2, float("nan"), 4))]), "expected 4 finite numbers"),
        (coco([annotation(1, 0, 4, (1, 2, 0, 4))]), "none of 1 boxes has an area"),
        (coco([annotation(1, 0, 4, (1, 2, 3, -4))]), "none of 1 boxes has an area"),
        (coco([]), "no annotation in"),
        (coco([annotation(1, 0, crowd=1)]), "every box with an area is marked as a crowd"),
        ({"images": []}, "cannot be read as COCO or LVIS annotations"),
    ],
)
def test_bad_annotations_are_refused_with_the_file_named(register, content, expected):
    name, path = register(content)
    with pytest.raises(DatasetError, match=expected) as error:
        dataset_statistics((name,))
    assert str(path) in str(error.value)


def test_loaders_may_give_numpy_numbers():
    """As those do that read a table with pandas."""
    box = np.array([1, 2, 30, 40], dtype=np.float32)
    entry = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": np.int64(1)}
    record = {"image_id": 1, "height": 60, "width": 80, "annotations": [entry]}
    assert usable_records([record], ["ant", "bee"], "a table") == [record]
    assert count_classes([record], 2).instance_count.tolist() == [0, 1]


@pytest.mark.parametrize("box", [None, [1, 2, 3], ["1", 2, 3, 4], [1, 2, float("nan"), 4]])
def test_boxes_that_are_none_are_left_to_the_checks(box):
    """Whoever drops what is not visible must not drop, or fail at, what an error is for."""
    assert is_visible({"bbox": box}, {"height": 60, "width": 80})


def test_missing_file_and_unknown_name(register):
    name, path = register(coco(GOOD))
    path.unlink()
    with pytest.raises(DatasetError, match="is missing; download it there, or set"):
        dataset_statistics((name,))
    with pytest.raises(DatasetError, match="no data set is registered as 'nothing'"):
        dataset_statistics(("nothing",))


def test_config_and_data_must_agree(register):
    name, _ = register(coco(GOOD))
    cfg = load_config("", ["DATASETS.TRAIN", f"('{name}',)", "MODEL.ROI_HEADS.NUM_CLASSES", "80"])
    with pytest.raises(ConfigError, match="training set has 3 classes: set it to 3"):
        prepare_statistics(cfg)


def test_counts_survive_files(tmp_path, register):
    name, _ = register(coco(GOOD))
    statistics = dataset_statistics((name,))
    path = tmp_path / "class_statistics.json"
    data_statistics.write_statistics(statistics, path)
    assert data_statistics.read_statistics(str(path)).fingerprint() == statistics.fingerprint()
    checkpoint = tmp_path / "model.pth"
    torch.save({"model": {}, "class_statistics": statistics.state_dict()}, checkpoint)
    assert (
        data_statistics.read_statistics(str(checkpoint)).fingerprint() == statistics.fingerprint()
    )
    torch.save({"model": {}}, tmp_path / "foreign.pth")
    with pytest.raises(DatasetError, match="holds no class statistics"):
        data_statistics.read_statistics(str(tmp_path / "foreign.pth"))


def test_a_newer_checkpoint_is_read_anew(tmp_path):
    path = tmp_path / "model_final.pth"
    for time, counts in enumerate(([1, 2], [3, 4])):
        torch.save({"class_statistics": ClassStatistics(counts, counts, 9).state_dict()}, path)
        os.utime(path, (time, time))
        assert read_statistics(str(path)).instance_count.tolist() == counts


def test_repeat_factors_equal_detectron2():
    records = [
        {"annotations": [{"category_id": c} for c in classes]}
        for classes in ([0, 1], [0], [0], [0, 2], [0, 0], [0], [1, 0], [0])
    ]
    statistics = count_classes(records, 3)
    threshold = 0.5
    by_class = class_repeat_factors(statistics, threshold)
    expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, threshold
    )
    actual = [max(by_class[a["category_id"]] for a in r["annotations"]) for r in records]
    torch.testing.assert_close(torch.tensor(actual).float(), expected)


def test_auto_threshold():
    large = ClassStatistics([5, 50, 5000], [5, 50, 1600], 1600)
    assert auto_threshold(large) == 100 / 1600
    small = ClassStatistics([5, 20, 90, 0], [5, 20, 60, 0], 80)
    assert auto_threshold(small) == 20 / 80  # the median of the classes that occur
