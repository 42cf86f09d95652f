"""Damaged annotation files: read for training and for evaluation, or explained in one sentence."""

import copy
import json
import logging
from functools import partial

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import strategies as st
from PIL import Image

from lt_detectron2.data import statistics as data_statistics
from lt_detectron2.data.build import training_records
from lt_detectron2.data.datasets import annotation_json, register_dataset
from lt_detectron2.data.datasets.annotation_json import summarize_annotation_json
from lt_detectron2.data.images import build_mapper
from lt_detectron2.data.statistics import dataset_statistics
from lt_detectron2.data.validate import is_visible
from lt_detectron2.engine.setup import load_config
from lt_detectron2.errors import DatasetError, UserError
from lt_detectron2.evaluation import load_ground_truth

from .mutations import changed, damaged, each_number, explore, works_or_is_explained

NAME = "reliability_test_set"
HEIGHT, WIDTH = 40, 50
THIN = 40
"""Pixels of a polygon that may have none in half the size."""


def code():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[5:20, 10:30] = 1
    return pycocotools.mask.encode(mask)["counts"].decode()


def annotations(federated):
    masks = [
        [[1, 2, 31, 2, 31, 22]],
        {"size": [HEIGHT, WIDTH], "counts": [500, 100, 1400]},
        {"size": [HEIGHT, WIDTH], "counts": code()},
        [[3.5, 4, 20, 4, 20, 30, 3, 30], [5, 5, 9, 5, 9, 9]],
    ]
    images = [
        {"id": id, "file_name": f"{id}.jpg", "height": HEIGHT, "width": WIDTH} for id in (7, 3, 5)
    ]
    entries = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [1, 2, 30, 20]}
        | {"area": 600, "segmentation": masks[n]}
        for n, (image, category) in enumerate([(7, 40), (3, 11), (7, 25), (7, 40)])
    ]
    if federated:
        for image in images:
            image.update(neg_category_ids=[11], not_exhaustive_category_ids=[40])
    else:
        for entry in entries:
            entry["iscrowd"] = 0
    categories = [{"id": id, "name": f"c{id}", "frequency": "r"} for id in (40, 11, 25)]
    return {"images": images, "annotations": entries, "categories": categories}


RECORD = (
    r"(image|annotation|category) (number |id )?-?\d+\b|not valid JSON|cannot be read"
    r"|list '\w+'|'\w+' is .* expected a list|expected an? (JSON )?object|no annotation in"
)
"""A record by its id or place, or what is wrong with the whole file."""

FILES = {"coco": annotations(False), "lvis": annotations(True)}
each_format = pytest.mark.parametrize("kind", FILES)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "set.json"
    register_dataset(NAME, path, tmp_path)
    yield path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    data_statistics._known.clear()


def contents(kind):
    """Bytes of files: changed in their values, or damaged."""
    text = json.dumps(FILES[kind], ensure_ascii=False).encode()
    return st.one_of(
        changed(FILES[kind]).map(lambda content: json.dumps(content).encode("utf-8", "replace")),
        damaged(text),
    )


def write(path, content):
    path.write_bytes(content)
    annotation_json._summaries.clear()  # files are rewritten faster than the clock ticks
    data_statistics._known.clear()


def read_for_training(path):
    """Counts; every annotation is loaded or reported as left out."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("lt_detectron2.data.validate")
    logger.addHandler(handler)
    try:
        statistics = dataset_statistics((NAME,))
    finally:
        logger.removeHandler(handler)
        for cache in path.parent.glob("*.class_statistics.json"):
            cache.unlink()
    entries = json.loads(path.read_bytes()).get("annotations", [])
    crowds = sum(bool(entry.get("iscrowd") or entry.get("ignore")) for entry in entries)
    reported = sum(int(message.split(": ")[1].split()[0]) for message in messages)
    assert int(statistics.instance_count.sum()) + crowds + reported >= len(entries)
    return statistics


@each_format
@each_number(30, 400)
def test_damaged_file_for_training(path, kind, number):
    """A damaged annotation file trains, or one error names the file; nothing is left out unsaid."""

    def check(content):
        write(path, content)
        works_or_is_explained(lambda: read_for_training(path), str(path), RECORD)

    explore(check, number, contents(kind))


def with_masks(kind, only_polygons):
    """Bytes of files of which the masks or boxes, or something else, are changed."""
    dataset = copy.deepcopy(FILES[kind])
    entries = dataset["annotations"]
    if only_polygons:
        entries[1]["segmentation"] = [[2, 2, 9, 3, 5, 8]]
        entries[2]["segmentation"] = [[1.5, 2, 7, 20, 30, 22, 31, 3]]
    shapes = [{key: entry[key] for key in ("segmentation", "bbox")} for entry in entries]

    def put_back(shapes):
        changed = [
            entry | shape if isinstance(shape, dict) else entry
            for entry, shape in zip(entries, shapes)
        ]
        return json.dumps(dataset | {"annotations": changed}).encode("utf-8", "replace")

    return st.one_of(changed(shapes).map(put_back), contents(kind))


@each_format
@pytest.mark.parametrize("masks", ["polygon", "bitmask"])
@each_number(40, 400)
def test_damaged_file_is_mapped(path, kind, masks, number):
    """What a training with masks gets of a damaged annotation file, or one error names the file."""
    for id in (7, 3, 5):
        Image.new("RGB", (WIDTH, HEIGHT), (90, 100, 110)).save(path.parent / f"{id}.jpg")
    cfg = load_config(
        "",
        ["DATASETS.TRAIN", f"('{NAME}',)", "MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", masks]
        + ["INPUT.MIN_SIZE_TRAIN", "(20,)"],
    )
    mapper = build_mapper(cfg, is_train=True)
    mapped = []

    def check(content):
        write(path, content)
        try:
            read_for_training(path)
            records = training_records(cfg)
        except UserError:
            return  # test_damaged_file_for_training looks at what it says
        for record in records:
            read = partial(mapper, record)
            example = works_or_is_explained(read, record["file_name"], r"^image \d+ ")
            if example is not None:
                mapped.append(example["instances"])
                entries = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
                wanted = [a for a in entries if is_visible(a, record)]  # the others are listed
                missing = len(wanted) - len(example["instances"])
                if masks == "bitmask" and missing > 0:
                    # Detectron2's main branch leaves out what has no pixel in the resized image.
                    missing = max(0, missing - sum(map(is_thin, wanted)))
                assert missing == 0

    explore(check, number, with_masks(kind, only_polygons=masks == "polygon"))
    assert mapped


def is_thin(entry):
    """Whether its polygons have few pixels; run lengths count as thick."""
    polygons = entry.get("segmentation")
    if not isinstance(polygons, list):
        return False
    runs = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, HEIGHT, WIDTH))
    return pycocotools.mask.area(runs) < THIN


@each_format
@each_number(30, 400)
def test_damaged_file_for_evaluation(path, kind, number):
    """A damaged annotation file is evaluated on, boxes and masks, or one error names the file."""

    def check(content):
        path.write_bytes(content)
        for with_masks in (False, True):
            read = partial(load_ground_truth, str(path), kind, with_masks=with_masks, write=False)
            works_or_is_explained(read, str(path), RECORD)

    explore(check, number, contents(kind))


def with_first(**changes):
    dataset = annotations(True)
    dataset["annotations"][0].update(changes)
    return dataset


@pytest.mark.parametrize(
    "dataset, message",
    [
        (with_first(id=2), "annotation id 2 occurs 2 times: renumber"),
        (with_first(image_id=4), "annotation 0 belongs to image 4, .*add the image"),
        (with_first(bbox=[1, 2, "3", 4]), "annotation 0 has the box .*mend or remove"),
        (with_first(bbox=[1, 2, 1e9, 4]), "annotation 0 has the box .*mend or remove"),
        (with_first(segmentation=[1, 2, 3, 4, 5, 6]), "annotation 0 has the polygon 1, .*brackets"),
        (with_first(segmentation=[[1, 2, 3, 4]]), "annotation 0 has a polygon of 4 numbers"),
        (
            with_first(segmentation={"size": [HEIGHT, WIDTH + 1], "counts": code()}),
            "annotation 0 has run lengths of the size .*its image is 40 x 50",
        ),
        (
            with_first(segmentation={"size": [HEIGHT, WIDTH], "counts": code()[:-1]}),
            "annotation 0 has run lengths that are not those of 40 x 50 pixels",
        ),
    ],
)
def test_record_is_named(path, dataset, message):
    """The error of an unusable annotation says which one it is, what it has, and what to do."""
    write(path, json.dumps(dataset).encode())
    with pytest.raises(DatasetError, match=message) as error:
        dataset_statistics((NAME,))
    assert "set.json" in str(error.value)


@each_format
def test_boxes_off_their_image_are_listed(path, kind, caplog):
    """Boxes outside their image or without area are not counted, and the log says which images."""
    dataset = annotations(kind == "lvis")
    dataset["annotations"][1]["bbox"] = [WIDTH + 3, 2, 10, 10]
    dataset["annotations"][2]["bbox"] = [4, 4, 0, 5]
    write(path, json.dumps(dataset).encode())
    statistics = dataset_statistics((NAME,))
    assert statistics.instance_count.tolist() == [0, 0, 2]  # both of c40
    assert "2 annotations have boxes without area inside their image" in caplog.text
    assert "of images 3, 7: mend or remove them" in caplog.text


@pytest.mark.parametrize("is_writable", [True, False])
def test_all_that_is_left_out_is_listed(path, tmp_path, caplog, monkeypatch, is_writable):
    """More than ten annotations that are left out are all in a file, which the log names."""
    dataset = annotations(False)
    entry = dataset["annotations"][0]
    dataset["annotations"] += [{**entry, "id": n, "bbox": [4, 4, 0, 5]} for n in range(10, 40)]
    write(path, json.dumps(dataset).encode())
    folder, pattern = tmp_path, "set.json.left_out_images.txt"
    if not is_writable:  # a folder of that name cannot be replaced by a file
        (tmp_path / "set.json.left_out_images.txt").mkdir()
        # Files of the same name in other folders have lists of their own there.
        folder, pattern = tmp_path / "temporary", "set.json.????????.left_out_images.txt"
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
    dataset_statistics((NAME,))
    (warning,) = [r.getMessage() for r in caplog.records if "are left out" in r.getMessage()]
    (listed,) = folder.glob(pattern)
    assert f"... (all in {listed})" in warning and "30 annotations" in warning
    assert listed.read_text().split() == ["7"] * 30


def test_short_polygons_of_coco_are_listed(path, caplog):
    """COCO annotations whose polygons all have two points are left out; the log lists their ids."""
    dataset = annotations(False)
    dataset["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    write(path, json.dumps(dataset).encode())
    assert dataset_statistics((NAME,)).instance_count.tolist() == [1, 1, 1]
    assert "1 annotations have no polygon of 3 points and are left out, with the ids 0" in (
        caplog.text
    )


@each_format
@pytest.mark.parametrize("number", [1, 20_000])
def test_number_of_categories(path, kind, number):
    """One category and 20,000, with odd ids and names of any script, are read in the same way."""
    dataset = annotations(kind == "lvis")
    dataset["categories"] = [{"id": 7 * n - 3, "name": f"вид {n} 猫"} for n in range(number)]
    for entry in dataset["annotations"]:
        entry["category_id"] = -3
    write(path, json.dumps(dataset, ensure_ascii=False).encode())
    statistics = dataset_statistics((NAME,))
    assert statistics.num_classes == number and statistics.class_names[0] == "вид 0 猫"
    assert statistics.instance_count.tolist() == [4] + [0] * (number - 1)
    assert summarize_annotation_json(path).class_of_category[7 * number - 10] == number - 1
    index, ids = load_ground_truth(str(path), kind, write=False)
    assert index.num_categories == number and ids[0] == -3
