"""Both constructions of COCO-LT: their rules, their files, and the recorded statistics."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_detectron2.data import statistics as data_statistics
from lt_detectron2.data.datasets import annotation_json, coco_lt
from lt_detectron2.data.datasets.coco_lt import build_coco_lt, coco_lt_json
from lt_detectron2.data.datasets.coco_lt_rules import (
    BAGS_TARGETS,
    AnnotationColumns,
    ListedImages,
    align_profile,
    read_listed_images,
    select_by_profile,
    select_listed,
)
from lt_detectron2.data.synthetic.draws import Draws
from lt_detectron2.errors import DatasetError
from tests.golden import load_golden

DATASETS = Path(__file__).parents[2] / "datasets"
COCO_IDS = sorted(MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id)


def columns(rows):
    """Annotations from (id, image, category, crowd)."""
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return AnnotationColumns(table[:, 0], table[:, 1], table[:, 2], table[:, 3] != 0)


def random_rows(draws, num_images=60, num_categories=6):
    """Rows in random order, with categories of very different sizes and a few crowds."""
    rows = []
    for image in range(num_images):
        for _ in range(draws.below(9)):
            category = min(draws.below(num_categories + 4), num_categories - 1)
            rows.append((1000 - len(rows), image, 10 * category, int(draws.chance(0.1))))
    return [rows[i] for i in draws.permutation(len(rows))]


def reference_choice(rows, targets, seed):
    """BAGS' rule, word by word."""
    objects = [row for row in rows if not row[3]]
    sizes = {c: sum(row[2] == c for row in objects) for c in {row[2] for row in objects}}
    ranked = sorted(sizes, key=lambda c: (-sizes[c], c))
    quota = dict(zip(ranked, targets))
    taken, visited = set(), set()
    for current in reversed(ranked):
        images = sorted({row[1] for row in objects if row[2] == current})
        for position in Draws(seed, current).permutation(len(images)):
            image = images[position]
            if quota[current] == 0:
                break
            if image in visited:
                continue
            visited.add(image)
            for row in sorted(row for row in objects if row[1] == image):
                if quota[row[2]] > 0:
                    quota[row[2]] -= 1
                    taken.add(row[0])
    assert not any(quota.values())
    return taken


@pytest.mark.parametrize("case", range(5))
def test_profile_rule_equals_its_description(case):
    rows = random_rows(Draws(7, case))
    targets = (30, 9, 5, 3, 2, 1)
    selection = select_by_profile(columns(rows), targets, seed=case)
    assert {row[0] for row, taken in zip(rows, selection) if taken} == reference_choice(
        rows, targets, case
    )


def test_profile_rule_fills_every_quota_and_takes_no_crowd():
    rows = random_rows(Draws(3))
    annotations = columns(rows)
    selection = select_by_profile(annotations, (30, 9, 5, 3, 2, 1))
    assert not annotations.is_crowd[selection].any()
    taken = np.unique(annotations.category_ids[selection], return_counts=True)[1]
    assert sorted(taken.tolist(), reverse=True) == [30, 9, 5, 3, 2, 1]
    # The order of the file has no influence, the seed has.
    again = select_by_profile(columns(rows[::-1]), (30, 9, 5, 3, 2, 1))
    np.testing.assert_array_equal(again[::-1], selection)
    other = select_by_profile(annotations, (30, 9, 5, 3, 2, 1), seed=1)
    assert (other != selection).any()


def test_profile_rule_on_a_set_of_the_real_size():
    generator = np.random.Generator(np.random.PCG64(0))
    counts = np.array(BAGS_TARGETS) * 3 + generator.integers(0, 40, 80)
    categories = np.repeat(generator.permutation(80) + 1, counts)
    images = generator.integers(0, 40_000, len(categories))
    ids = generator.permutation(len(categories))
    crowd = np.zeros(len(categories), dtype=bool)
    annotations = AnnotationColumns(ids, images, categories, crowd)
    selection = select_by_profile(annotations, BAGS_TARGETS)
    assert selection.sum() == 64504
    taken = np.bincount(categories[selection], minlength=81)[1:]
    assert sorted(taken.tolist(), reverse=True) == list(BAGS_TARGETS)


def test_profile_rule_refuses_what_cannot_be_filled():
    annotations = columns([(1, 1, 4, 0), (2, 1, 5, 0), (3, 2, 5, 0), (4, 2, 4, 1)])
    with pytest.raises(DatasetError, match="category 4 has 1 objects, its target is 2"):
        select_by_profile(annotations, (2, 2))
    with pytest.raises(DatasetError, match="annotations of 3 categories, found 2"):
        select_by_profile(annotations, (2, 1, 1))


def test_bags_profile_is_that_of_lvis():
    golden = load_golden("coco_lt")
    aligned = align_profile(golden["lvis05_sorted_desc"], 80)
    assert aligned.tolist() == list(BAGS_TARGETS) == golden["bags_target_instances"].tolist()


def test_bags_profile_has_the_published_size():
    assert len(BAGS_TARGETS) == 80 and sum(BAGS_TARGETS) == 64504
    assert list(BAGS_TARGETS) == sorted(BAGS_TARGETS, reverse=True)
    bins = np.digitize(BAGS_TARGETS, coco_lt.INSTANCE_BIN_EDGES["bags"])
    assert np.bincount(bins).tolist() == [19, 29, 20, 12]


def test_alignment_by_hand():
    # Position k of 3 reads floor(k * 5 / 2) = 0, 2, 5.
    assert align_profile([1, 2, 4, 8, 16, 32], 3).tolist() == [32, 8, 1]
    with pytest.raises(ValueError, match="at least 2"):
        align_profile([1, 2], 1)


@pytest.fixture(scope="module")
def listed():
    return read_listed_images(DATASETS / "coco_lt_simcal.txt")


def test_simcal_list_equals_the_recorded_statistics(listed):
    golden = load_golden("coco_lt")
    assert sorted(listed) == COCO_IDS
    entries = [listed[id] for id in COCO_IDS]
    assert [e.instance_count for e in entries] == golden["simcal_instance_counts"].tolist()
    assert [e.image_count for e in entries] == golden["simcal_image_counts"].tolist()
    start = golden["simcal_cat_img_indptr"]
    image_ids = golden["simcal_cat_img_ids"]
    for index, entry in enumerate(entries):
        assert (entry.image_ids is None) == (entry.instance_count >= 8000)
        if entry.image_ids is not None:
            expected = np.sort(image_ids[start[index] : start[index + 1]])
            np.testing.assert_array_equal(entry.image_ids, expected)


def test_simcal_list_has_the_published_size(listed):
    counts = np.array([entry.instance_count for entry in listed.values()])
    assert counts.sum() == 666493
    bins = np.digitize(counts, coco_lt.INSTANCE_BIN_EDGES["simcal"])
    assert np.bincount(bins).tolist() == [4, 24, 32, 20]


def test_simcal_rule_on_a_set_of_the_real_size(listed):
    """COCO's annotations are imitated from the recorded images of each category, with decoys."""
    golden = load_golden("coco_lt")
    start, image_ids = golden["simcal_cat_img_indptr"], golden["simcal_cat_img_ids"]
    images, categories = [], []
    for index, id in enumerate(COCO_IDS):
        holding = image_ids[start[index] : start[index + 1]].astype(np.int64)
        extra = golden["simcal_instance_counts"][index] - len(holding)
        images += [holding, np.repeat(holding[:1], extra)]
        decoys = np.arange(700_000, 700_300) if listed[id].image_ids is not None else holding[:0]
        images.append(decoys)
        categories.append(np.full(len(holding) + extra + len(decoys), id))
    images, categories = np.concatenate(images), np.concatenate(categories)
    annotations = AnnotationColumns(
        np.arange(len(images)), images, categories, np.zeros(len(images), dtype=bool)
    )
    selection = select_listed(annotations, listed)
    assert selection.sum() == 666493
    assert len(np.unique(images[selection])) == golden["simcal_num_images"] == 99411
    assert coco_lt.SIMCAL_NUM_IMAGES == 99411
    assert images[selection].max() < 700_000

    annotations.image_ids[np.flatnonzero(categories == COCO_IDS[10])[0]] = 700_000
    message = "differs from SimCal's set for 1 of 80 categories .category 11: 10 annotations in 10"
    with pytest.raises(DatasetError, match=message):
        select_listed(annotations, listed)


def test_listed_images_by_hand(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# a comment\n7 3 2 5 4  # images 5 and 9\n8 1 1 *\n")
    listed = read_listed_images(path)
    assert listed[7].image_ids.tolist() == [5, 9] and listed[8].image_ids is None
    annotations = columns([(1, 5, 7, 0), (2, 5, 7, 1), (3, 6, 7, 0), (4, 9, 7, 0), (5, 6, 8, 0)])
    assert select_listed(annotations, listed).tolist() == [True, True, False, True, True]
    with pytest.raises(DatasetError, match=r"lack some that are \(8\)"):
        select_listed(columns([(1, 5, 7, 0)]), listed)
    path.write_text("7 3 2 5\n")
    with pytest.raises(DatasetError, match="category 7 lists 1 of 2 images"):
        read_listed_images(path)
    with pytest.raises(DatasetError, match="get it again"):
        read_listed_images(tmp_path / "nothing.txt")


# ---- files


def small_coco(num_images=8):
    """COCO's categories, of which the first three are larger than the others."""
    images, annotations = [], []
    for image in range(num_images):
        images.append(
            {"id": image, "file_name": f"{image:012d}.jpg", "height": 50, "width": 60, "license": 1}
        )
        present = COCO_IDS if image < 2 else COCO_IDS[:3]
        for category in present:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [1, 2, 30, 20],
                    "area": 600,
                    "iscrowd": 0,
                    "segmentation": [[1, 2, 31, 2, 31, 22]],
                }
            )
    names = MetadataCatalog.get("coco_2017_val").thing_classes
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in zip(COCO_IDS, names)],
    }


SMALL_TARGETS = (8, 6, 4, *[2] * 7, *[1] * 70)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    source = tmp_path / coco_lt.COCO_TRAIN_JSON
    source.parent.mkdir(parents=True)
    source.write_text(json.dumps(small_coco()))
    monkeypatch.setattr(coco_lt, "BAGS_TARGETS", SMALL_TARGETS)
    data_statistics._known.clear()
    yield tmp_path
    data_statistics._known.clear()


def script(name):
    spec = importlib.util.spec_from_file_location(name, DATASETS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_builds_a_set_that_can_be_loaded_and_counted(root, capsys):
    script("prepare_coco_lt").main(["bags", "--seed", "5"])
    assert "8 images, 102 annotations (sha256 of their ids" in capsys.readouterr().out
    path = root / coco_lt_json("bags")
    built = json.loads(path.read_bytes())
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished is left
    assert built["info"]["coco_lt"]["seed"] == 5 and built["info"]["year"] == 2017
    assert len(built["categories"]) == 80 and built["licenses"] == [{"id": 1}]
    original = {entry["id"]: entry for entry in small_coco()["annotations"]}
    assert all(entry == original[entry["id"]] for entry in built["annotations"])

    records = DatasetCatalog.get("coco_lt_bags_train")
    assert records[0]["file_name"] == str(root / "coco/train2017/000000000000.jpg")
    statistics = data_statistics.dataset_statistics(("coco_lt_bags_train",))
    assert sorted(statistics.instance_count.tolist(), reverse=True) == list(SMALL_TARGETS)
    assert statistics.class_names == tuple(MetadataCatalog.get("coco_2017_val").thing_classes)

    first = path.read_bytes()
    build_coco_lt("bags", seed=5)
    assert path.read_bytes() == first


def test_simcal_file(root, monkeypatch):
    monkeypatch.setattr(coco_lt, "SIMCAL_NUM_IMAGES", 2)
    two = np.array([0, 1])
    listed = {id: ListedImages(2, 2, two if id in COCO_IDS[:3] else None) for id in COCO_IDS}
    built = json.loads(build_coco_lt("simcal", listed=listed).read_bytes())
    assert [image["id"] for image in built["images"]] == [0, 1]
    assert len(built["annotations"]) == 160
    assert len(DatasetCatalog.get("coco_lt_simcal_train")) == 2

    monkeypatch.setattr(coco_lt, "SIMCAL_NUM_IMAGES", 3)
    with pytest.raises(DatasetError, match="2 images remain, expected 3"):
        build_coco_lt("simcal", listed=listed)
    with pytest.raises(ValueError, match="'bags', 'simcal'"):
        build_coco_lt("zipf")


def test_an_interrupted_write_leaves_what_was_there(root, monkeypatch):
    path = build_coco_lt("bags")
    first = path.read_bytes()

    def interrupted(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(annotation_json, "counter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_coco_lt("bags", seed=1)
    assert path.read_bytes() == first and list(path.parent.iterdir()) == [path]


def test_missing_and_unusable_sources_are_explained(root, tmp_path, capsys):
    for split, remedy in (
        ("train", "make it with: python datasets/prepare_coco_lt.py simcal"),
        ("val", "get the annotations of COCO 2017 from"),
    ):
        with pytest.raises(DatasetError, match=remedy):
            DatasetCatalog.get(f"coco_lt_simcal_{split}")
    prepare = script("prepare_coco_lt")
    (root / coco_lt.COCO_TRAIN_JSON).write_text('{"images": [], "annota')
    for arguments, message in (
        (["bags", "--root", str(tmp_path / "elsewhere")], "COCO's annotations are missing"),
        (["bags"], "not valid JSON"),
        (["bags", "--seed", "-1"], "at least 0"),
    ):
        with pytest.raises(SystemExit) as exit:
            prepare.main(arguments)
        assert exit.value.code == 2 and message in capsys.readouterr().err
    broken = small_coco()
    del broken["annotations"][3]["category_id"]
    (root / coco_lt.COCO_TRAIN_JSON).write_text(json.dumps(broken))
    with pytest.raises(DatasetError, match="whole numbers as id, image_id and category_id"):
        build_coco_lt("bags")
    blocked = root / "coco_lt"
    blocked.write_text("a file where a folder should be")
    (root / coco_lt.COCO_TRAIN_JSON).write_text(json.dumps(small_coco()))
    with pytest.raises(DatasetError, match="cannot be written"):
        build_coco_lt("bags")


def test_metadata(monkeypatch):
    train = MetadataCatalog.get("coco_lt_simcal_train")
    val = MetadataCatalog.get("coco_lt_simcal_val")
    coco = MetadataCatalog.get("coco_2017_val")
    assert train.thing_classes == val.thing_classes == coco.thing_classes
    assert train.thing_colors == coco.thing_colors
    assert train.thing_dataset_id_to_contiguous_id == coco.thing_dataset_id_to_contiguous_id
    assert train.evaluator_type == val.evaluator_type == "coco"
    assert val.instance_bin_edges == (20, 400, 8000)
    monkeypatch.setenv("DETECTRON2_DATASETS", "/elsewhere")
    assert train.json_file == "/elsewhere/coco_lt/coco_lt_simcal_train.json"
    assert val.json_file == "/elsewhere/coco/annotations/instances_val2017.json"
    assert val.image_root == "/elsewhere/coco/val2017"
    assert val.as_dict()["image_root"] == val.image_root
