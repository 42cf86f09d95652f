"""Records kept in a file: the same as parsed ones, shared by processes, and never stale."""

import io
import json
import pickle
import stat
from collections import Counter

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode

from lt_detectron2.data import record_store, shared_records
from lt_detectron2.data import statistics as data_statistics
from lt_detectron2.data.build import build_train_loader, training_records
from lt_detectron2.data.datasets import annotation_json
from lt_detectron2.data.datasets.custom import register_dataset
from lt_detectron2.data.digest import file_digest
from lt_detectron2.data.image_classes import ImageClasses
from lt_detectron2.data.record_store import RecordStore, SharedRecords
from lt_detectron2.data.statistics import count_classes
from lt_detectron2.engine.setup import load_config
from lt_detectron2.errors import DatasetError
from tests.engine import small_set
from tests.losses.two_processes import run_in_two_processes
from tests.modeling.detectors import NUM_CLASSES

NAMES = ("shared_records_first", "shared_records_second")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Small files are kept too; folders of the test's own take them."""
    monkeypatch.setattr(shared_records, "WORTH_KEEPING", 0)
    monkeypatch.setattr(shared_records, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.delenv(shared_records.FOLDER_VARIABLE, raising=False)
    (tmp_path / "temporary").mkdir()
    for name, num_images in zip(NAMES, (8, 5)):
        (tmp_path / name).mkdir()
        small_set.register(name, tmp_path / name, num_images)
        change(tmp_path / name / f"{name}.json", add_crowd)
    yield tmp_path
    for name in NAMES:
        small_set.unregister(name)


def change(path, edit):
    dataset = json.loads(path.read_text())
    edit(dataset)
    path.write_text(json.dumps(dataset))


def add_crowd(dataset):
    """One image with a crowd only, whose class is in no other, and one without annotations."""
    size = {"height": 64, "width": 80}
    images = [{"id": 100 + i, "file_name": f"{i}.png", **size} for i in range(2)]
    dataset["images"] = images[:1] + dataset["images"] + images[1:]
    crowd = {"id": 1000, "image_id": 100, "category_id": 63, "bbox": [1, 2, 30, 40], "area": 9}
    runs = {"size": [64, 80], "counts": [100, 50, 64 * 80 - 150]}
    dataset["annotations"].append({**crowd, "iscrowd": 1, "segmentation": runs})


def config(*overrides, names=NAMES):
    return load_config(
        "",
        ["DATASETS.TRAIN", str(tuple(names)), "MODEL.ROI_HEADS.NUM_CLASSES", str(NUM_CLASSES)]
        + ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SEED", "3", *overrides],
    )


def loaded(filter_empty=True, names=NAMES):
    return get_detection_dataset_dicts(names, filter_empty=filter_empty)


@pytest.mark.parametrize("filter_empty", [True, False])
def test_equals_parsed_records(filter_empty):
    records = training_records(config("DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(filter_empty)))
    expected = loaded(filter_empty)
    assert isinstance(records, SharedRecords)
    assert list(records) == expected and len(records) == len(expected)
    assert len(expected) == (13 if filter_empty else 17)
    actual = ImageClasses.from_records(records, NUM_CLASSES)
    reference = ImageClasses.from_records(expected, NUM_CLASSES)
    for column in ("image", "classes", "instances"):
        assert torch.equal(getattr(actual, column), getattr(reference, column))
    counts = [count_classes(r, NUM_CLASSES).state_dict() for r in (records, expected)]
    assert counts[0] == counts[1]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert torch.equal(factors(records.class_records(), 0.5), factors(expected, 0.5))


def test_parsed_once(places, monkeypatch):
    first = list(training_records(config()))
    for name in NAMES:
        assert (places / name / f"{name}.{name}.records").is_file()
        MetadataCatalog.get(name).__dict__.pop("thing_classes")
        MetadataCatalog.get(name).__dict__.pop("thing_dataset_id_to_contiguous_id")
    monkeypatch.setattr(shared_records, "load_records", lambda name: pytest.fail("parsed again"))
    assert list(training_records(config())) == first
    # What Detectron2's loader would have said about the set.
    metadata = MetadataCatalog.get(NAMES[0])
    assert metadata.thing_classes == [f"class {c}" for c in range(NUM_CLASSES)]
    assert metadata.thing_dataset_id_to_contiguous_id[13] == 1


@pytest.mark.parametrize("sampler", ["RepeatFactorTrainingSampler", "EpisodicSampler"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_batches_equal_those_of_parsed_records(sampler, workers, monkeypatch):
    keys = ["DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.NUM_WORKERS", workers]
    cfg = config(*keys, "DATALOADER.REPEAT_THRESHOLD", "0.9")

    def images():
        torch.manual_seed(0)
        monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: 7)
        batches = iter(build_train_loader(cfg))
        return [image["file_name"] for _ in range(4) for image in next(batches)]

    assert isinstance(training_records(cfg), SharedRecords)
    shared = images()
    monkeypatch.setenv(shared_records.FOLDER_VARIABLE, "off")
    assert isinstance(training_records(cfg), list)
    assert images() == shared


def test_changed_content_is_parsed_anew(places):
    assert len(training_records(config())) == 13

    def drop_annotations_of_first(dataset):
        kept = [a for a in dataset["annotations"] if a["image_id"] != 0]
        dataset["annotations"] = kept

    change(places / NAMES[0] / f"{NAMES[0]}.json", drop_annotations_of_first)
    assert list(training_records(config())) == loaded() and len(loaded()) == 12


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_file_is_made_anew(places, damage):
    training_records(config())
    path = places / NAMES[0] / f"{NAMES[0]}.{NAMES[0]}.records"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-7], "empty": b"", "text": b"x" * 100}[damage])
    assert list(training_records(config())) == loaded()
    assert path.read_bytes() == content


def test_file_made_before_the_images_came_is_made_anew(places, monkeypatch):
    training_records(config())
    parsed = []
    monkeypatch.setattr(
        shared_records, "load_records", lambda name: parsed.append(name) or loaded(names=(name,))
    )
    first = training_records(config())[0]["file_name"]
    (places / NAMES[0] / first).rename(places / "moved.png")
    training_records(config())
    assert parsed == [NAMES[0]]


def refuse_in(monkeypatch, *folders):
    write = record_store.write

    def refuse(path, *arguments):
        if path.parent in folders:
            raise PermissionError(13, "read-only")
        write(path, *arguments)

    monkeypatch.setattr(record_store, "write", refuse)


def test_unwritable_folder(places, monkeypatch, caplog):
    refuse_in(monkeypatch, *(places / name for name in NAMES))
    with caplog.at_level("INFO"):
        records = training_records(config())
    assert "cannot be kept in" in caplog.text
    assert isinstance(records, SharedRecords) and list(records) == loaded()
    (private,) = (places / "temporary").iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert len(list(private.iterdir())) == 2

    private.chmod(0o777)  # somebody else could have put records there
    records = training_records(config())
    assert records == loaded() and isinstance(records, list)
    assert "every process parses and holds them" in caplog.text


def test_full_disk_leaves_nothing_behind(places, monkeypatch):
    dumps, calls = pickle.dumps, []

    def fill(record, protocol):
        calls.append(record)
        if len(calls) > 3:
            raise OSError(28, "no space left on device")
        return dumps(record, protocol)

    monkeypatch.setattr(record_store.pickle, "dumps", fill)
    assert isinstance(training_records(config()), list)
    assert not [p for p in places.rglob("*") if ".records" in p.name]


def test_folder_of_choice(places, monkeypatch):
    (places / "chosen").mkdir()
    monkeypatch.setenv(shared_records.FOLDER_VARIABLE, str(places / "chosen"))
    assert list(training_records(config())) == loaded()
    assert len(list((places / "chosen").iterdir())) == 2
    assert not list(places.glob("*/*/*.records")) and not list((places / NAMES[0]).glob("*.recor*"))


def test_sets_of_own_loaders_are_not_kept(places):
    records = loaded()
    DatasetCatalog.register("shared_records_own", lambda: records)
    try:
        path = places / NAMES[0] / f"{NAMES[0]}.json"
        MetadataCatalog.get("shared_records_own").set(
            json_file=str(path), thing_classes=[f"class {c}" for c in range(NUM_CLASSES)]
        )
        assert training_records(config(names=["shared_records_own"])) == records
        assert not list(places.rglob("*.records"))
    finally:
        small_set.unregister("shared_records_own")


def test_lvis_format(places):
    path = places / "lvis.json"
    path.write_text((places / NAMES[0] / f"{NAMES[0]}.json").read_text())

    def to_lvis(dataset):
        for image in dataset["images"]:
            image.update(neg_category_ids=[3], not_exhaustive_category_ids=[])

    change(path, to_lvis)
    register_dataset("shared_records_lvis", path, places / NAMES[0])
    try:
        records = training_records(config(names=["shared_records_lvis"]))
        assert isinstance(records, SharedRecords)
        assert list(records) == loaded(names=["shared_records_lvis"])
        assert records[0]["neg_category_ids"] == [0]
    finally:
        small_set.unregister("shared_records_lvis")


def test_own_set_in_another_process(places, monkeypatch):
    path = places / NAMES[0] / f"{NAMES[0]}.json"
    register_dataset("shared_records_custom", path, places / NAMES[0])
    try:
        first = list(training_records(config(names=["shared_records_custom"])))
        annotation_json._summaries.clear()
        monkeypatch.setattr(
            annotation_json, "read_annotation_json", lambda path: pytest.fail("read again")
        )
        assert list(training_records(config(names=["shared_records_custom"]))) == first
        metadata = MetadataCatalog.get("shared_records_custom")
        assert metadata.thing_classes == [f"class {c}" for c in range(NUM_CLASSES)]
        assert metadata.evaluator_type == "coco"
    finally:
        small_set.unregister("shared_records_custom")


def test_useless_boxes_are_neither_counted_nor_sampled(places, monkeypatch):
    def no_width(dataset):
        """Boxes of one image without area, and one of another that has more."""
        sizes = Counter(a["image_id"] for a in dataset["annotations"] if not a["iscrowd"])
        first = next(image for image, size in sizes.items() if size == 1)
        second = next(image for image, size in sizes.items() if size > 1)
        entry_of = {a["image_id"]: a for a in dataset["annotations"]}
        for entry in (entry_of[first], entry_of[second]):
            entry["bbox"][2] = 0
            del entry["segmentation"]  # nobody needs the mask of what is not trained on

    change(places / NAMES[0] / f"{NAMES[0]}.json", no_width)
    useless = sum(a["bbox"][2] == 0 for r in loaded() for a in r["annotations"])
    for _ in ("parsed", "from the file"):
        data_statistics._known.clear()
        (places / NAMES[0]).joinpath(f"{NAMES[0]}.{NAMES[0]}.class_statistics.json").unlink(True)
        counted = data_statistics.dataset_statistics((NAMES[0],)).instance_count.sum()
        total = sum(len(r["annotations"]) for r in loaded(names=NAMES[:1]))
        assert counted == total - useless < total - 1
    for choice, kind in (("", SharedRecords), ("off", list)):
        monkeypatch.setenv(shared_records.FOLDER_VARIABLE, choice)
        for filter_empty, number in (("True", 12), ("False", 17)):
            keys = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", filter_empty, "MODEL.MASK_ON", "True"]
            records = training_records(config(*keys))
            assert isinstance(records, kind) and len(records) == number
            boxes = [a["bbox"] for record in records for a in record["annotations"]]
            assert all(box[2] > 0 for box in boxes)
            images = ImageClasses.from_records(records, NUM_CLASSES)
            counts = data_statistics.dataset_statistics(NAMES).instance_count
            assert torch.equal(images.instance_count, counts)
            if kind is SharedRecords:
                present = [{a["category_id"] for a in record["annotations"]} for record in records]
                named = records.class_records()
                assert [{a["category_id"] for a in r["annotations"]} for r in named] == present


def test_missing_masks_are_reported(places):
    def drop_mask(dataset):
        del dataset["annotations"][2]["segmentation"]

    change(places / NAMES[0] / f"{NAMES[0]}.json", drop_mask)
    messages = []
    for choice in ("", "off"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(shared_records.FOLDER_VARIABLE, choice)
            with pytest.raises(DatasetError, match="1 annotations have no segmentation") as error:
                training_records(config("MODEL.MASK_ON", "True"))
            messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_classes_that_are_no_numbers_are_left_to_the_checks(places):
    records = [{"annotations": [{"category_id": None}]}]
    assert not shared_records._can_be_kept(records)
    assert not shared_records._can_be_kept([{"file_name": "a.png"}])


def test_no_object_at_all(places):
    def drop_objects(dataset):
        dataset["annotations"] = [a for a in dataset["annotations"] if a["iscrowd"]]

    change(places / NAMES[0] / f"{NAMES[0]}.json", drop_objects)
    with pytest.raises(DatasetError, match="no image has an annotation to train on"):
        training_records(config(names=NAMES[:1]))


class Harmful:
    def __reduce__(self):
        return print, ("should not be run",)


def damage_records(path, record):
    """Write another first record of the same size into a file of records."""
    content, store = bytearray(path.read_bytes()), RecordStore(path)
    size = int(store._offsets[1])
    pickled = record if isinstance(record, bytes) else pickle.dumps(record)
    assert len(pickled) <= size
    content[:size] = pickled.ljust(size)
    path.write_bytes(content)


def test_a_file_makes_records_only(tmp_path):
    """A file of records beside an annotation file makes numbers, texts and box modes only."""
    record = {"annotations": [{"category_id": 0, "extra": Harmful()}]}
    record_store.write(tmp_path / "file", [record], {}, {})
    with pytest.raises(pickle.UnpicklingError, match="must not hold builtins.print"):
        RecordStore(tmp_path / "file")[0]
    convert, pickled = BoxMode.convert, pickle.dumps(BoxMode)
    content = pickled[:-1] + b"N}\x8c\x07convert\x8c\x01xs\x86b."  # sets BoxMode.convert = "x"
    with pytest.raises((AttributeError, TypeError)):
        record_store._Unpickler(io.BytesIO(content)).load()
    assert BoxMode.convert is convert
    # The member 1 with _value_ 0: it would be saved as another mode from then on.
    content = pickle.dumps(BoxMode.XYWH_ABS)[:-1] + b"}\x8c\x07_value_K\x00sb."
    with pytest.raises(AttributeError):
        record_store._Unpickler(io.BytesIO(content)).load()
    assert pickle.loads(pickle.dumps(BoxMode.XYWH_ABS)) is BoxMode.XYWH_ABS
    records = [{"annotations": [{"category_id": 0, "bbox_mode": BoxMode.XYWH_ABS}]}]
    record_store.write(tmp_path / "file", records, {}, {})
    assert RecordStore(tmp_path / "file")[0]["annotations"][0]["bbox_mode"] is BoxMode.XYWH_ABS


@pytest.mark.parametrize(
    "record",
    [
        *(Harmful(), 3, {"image_id": 1}, pickle.dumps(b"\0")),
        *(b"K\x00}b.", b"\x80\x04\x8d" + b"\xff" * 8),
    ],
    ids=["program", "number", "half a record", "bytes", "number with a state", "endless text"],
)
def test_file_of_something_else_is_parsed_anew(places, record):
    """A file beside the annotations that holds no records, or a program, is made anew."""
    expected = list(training_records(config(names=NAMES[:1])))
    (path,) = places.rglob("*.records")
    content = path.read_bytes()
    damage_records(path, record)
    assert list(training_records(config(names=NAMES[:1]))) == expected
    assert path.read_bytes() == content


def test_a_name_with_a_slash_leads_to_no_other_folder(tmp_path):
    MetadataCatalog.get("my/train").json_file = str(tmp_path / "labels.json")
    beside, private = shared_records._places("my/train", {"sha256": "0" * 64})
    assert beside == tmp_path / "labels.my_train.records"
    assert private.name == f"labels.my_train.{'0' * 16}.records"


def test_store_that_is_pickled_maps_the_file(tmp_path):
    records = [{"annotations": [{"category_id": 2}], "blob": "x" * 10_000}] * 50
    record_store.write(tmp_path / "file", records, {}, {})
    pickled = pickle.dumps(RecordStore(tmp_path / "file"))
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[49] == records[49]


def test_digest_follows_the_content(tmp_path, monkeypatch):
    monkeypatch.setattr("lt_detectron2.data.digest.LARGE", 0)
    path = tmp_path / "file"
    assert file_digest(path) == "" == file_digest("")
    digests = set()
    for content in (b"one", b"three", b"five", b"five again"):
        path.write_bytes(content)
        digests.add(file_digest(path))
    assert len(digests) == 4


# ---- two processes


def in_one_of_two(rank, folder):
    """What each process parsed and got: first when parsing fails, then when it does not."""
    shared_records.WORTH_KEEPING = 0
    shared_records.comm.get_local_rank = lambda: rank
    for name in NAMES:  # as in `places`, in a process of its own
        register_coco_instances(name, {}, f"{folder}/{name}/{name}.json", f"{folder}/{name}")
    parsed, parse = [], shared_records.load_records

    def fail(name):
        raise DatasetError("cannot be read")

    def count(name):
        parsed.append(name)
        return parse(name)

    shared_records.load_records = fail
    try:
        training_records(config())
        message = ""
    except DatasetError as error:
        message = str(error)
    shared_records.load_records = count
    records = training_records(config())
    images = [record["image_id"] for record in records]
    return {"message": message, "parsed": parsed, "type": type(records).__name__, "images": images}


def test_two_processes_parse_once_and_fail_together(places):
    first, second = run_in_two_processes(in_one_of_two, str(places))
    assert first.pop("parsed") == list(NAMES) and second.pop("parsed") == []
    images = [record["image_id"] for record in loaded()]
    assert first == second
    assert first == {"message": "cannot be read", "type": "SharedRecords", "images": images}
