"""The split of one annotation file: rare classes in both parts, the same on every machine."""

import json

import pytest

from lt_detectron2.data.split import (
    choose_validation_images,
    classes_of_one_part,
    split_annotations,
)
from lt_detectron2.errors import DatasetError


def dataset(classes_of_images):
    """A file whose image i holds one object of each of these classes."""
    annotations = [
        {"image_id": image, "category_id": c, "bbox": [0, 0, 9, 9]}
        for image, classes in enumerate(classes_of_images)
        for c in classes
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(len(classes_of_images))],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": c, "name": f"class {c}"} for c in (1, 5, 9, 12)],
    }


def count(dataset, images, category):
    return len(
        {
            a["image_id"]
            for a in dataset["annotations"]
            if a["category_id"] == category and a["image_id"] in images
        }
    )


def test_each_class_has_its_share_and_rare_ones_are_in_both_parts():
    every = dataset([[1]] * 50 + [[5, 1]] * 10 + [[9]] * 2 + [[12]] + [[]] * 20)
    chosen = choose_validation_images(every, share=0.2)
    assert count(every, chosen, 1) == 12
    assert 2 <= count(every, chosen, 5) <= 4  # some come with class 1
    assert count(every, chosen, 9) == 1  # one of two
    assert count(every, chosen, 12) == 0  # the only image is for training
    assert len([i for i in chosen if i >= 63]) == 4  # of the images without objects


def test_no_class_loses_its_last_training_image():
    # Both images of class 9 hold the only object of another class.
    every = dataset([[9, 5], [9, 12], *[[1]] * 8])
    chosen = choose_validation_images(every, share=0.5)
    assert not chosen & {0, 1} and len(chosen) == 4


def test_crowds_are_no_objects():
    every = dataset([[1], [1], [1], [1]])
    for annotation in every["annotations"][:2]:
        annotation["iscrowd"] = 1
    assert len(choose_validation_images(every, share=0.5) & {2, 3}) == 1


def test_the_order_of_the_file_does_not_matter_and_the_seed_does():
    every = dataset([[1 + 4 * (i % 3)] for i in range(60)])
    shuffled = {**every, "images": every["images"][::-1], "annotations": every["annotations"][::-1]}
    chosen = choose_validation_images(every)
    assert choose_validation_images(shuffled) == chosen
    assert choose_validation_images(every, seed=1) != chosen


def test_files_are_complete_and_reused(tmp_path):
    source = tmp_path / "labels.json"
    every = dataset([[1]] * 9 + [[5]] * 4 + [[12]])
    source.write_text(json.dumps(every))
    train, val = split_annotations(source, tmp_path / "output")
    parts = [json.loads(path.read_text()) for path in (train, val)]
    assert sorted(i["id"] for part in parts for i in part["images"]) == list(range(14))
    assert sorted(a["id"] for part in parts for a in part["annotations"]) == list(range(14))
    assert all(part["categories"] == every["categories"] for part in parts)
    assert parts[1]["info"]["split"] == {"source": "labels.json", "share": 0.2, "seed": 0}
    assert classes_of_one_part((train, val)) == {"train": ["class 12"], "val": []}

    before = train.stat().st_mtime_ns
    assert split_annotations(source, tmp_path / "output") == (train, val)
    assert train.stat().st_mtime_ns == before
    assert split_annotations(source, tmp_path / "output", seed=1) != (train, val)
    source.write_text(json.dumps({**every, "info": {}}))
    assert split_annotations(source, tmp_path / "output") != (train, val)


@pytest.mark.parametrize("classes", [[[1]], [[1], [5], [9]], [[1], [5], [], [], []]])
def test_too_few_images(tmp_path, classes):
    source = tmp_path / "labels.json"
    source.write_text(json.dumps(dataset(classes)))
    with pytest.raises(
        DatasetError, match=f"labels.json: .* {len(classes)} images.*VAL_SHARE 0 to"
    ):
        split_annotations(source, tmp_path)
    assert list(tmp_path.iterdir()) == [source]


def test_bad_input(tmp_path):
    source = tmp_path / "labels.json"
    with pytest.raises(DatasetError, match="missing"):
        split_annotations(source, tmp_path)
    source.write_text(json.dumps(dataset([[1]] * 5)))
    with pytest.raises(DatasetError, match="VAL_SHARE is 1, expected a number between 0 and 1"):
        split_annotations(source, tmp_path, share=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written.*OUTPUT_DIR"):
        split_annotations(source, tmp_path / "file")
