"""What detectors take objects for: counts against a loop, a table by hand, a figure, its CSV."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lt_detectron2.analysis.confusion import (
    confuse,
    confuse_in_parts,
    confusion_figure,
    confusion_of_run,
    draw,
    markdown_table,
    top_confusions,
)
from lt_detectron2.analysis.results import CategoryResult
from lt_detectron2.analysis.style import to_pixels
from lt_detectron2.errors import UserError
from lt_detectron2.evaluation import Detections, GroundTruth

CATEGORIES = {
    3: CategoryResult("cat", "frequent", 900, 50.0),
    5: CategoryResult("dog", "common", 40, 10.0),
    9: CategoryResult("emu", "rare", 4, 0.0),
}


def ground_truth_of(objects: list[tuple[int, int, list[float]]], **flags: list[int]) -> GroundTruth:
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": 1.0}
        for i, (image, category, box) in enumerate(objects)
    ]
    for name, values in flags.items():
        for annotation, value in zip(annotations, values):
            annotation[name] = value
    categories = [{"id": id, "name": row.name} for id, row in CATEGORIES.items()]
    images = [{"id": id, "height": 100, "width": 100} for id in (1, 2, 4)]
    return GroundTruth.from_coco(
        {"images": images, "categories": categories, "annotations": annotations}
    )


def detections_of(rows: list[tuple[int, int, float, list[float]]]) -> Detections:
    images, categories, scores, boxes = zip(*rows) if rows else ((), (), (), ())
    return Detections(
        np.array(images, np.int64),
        np.array(categories, np.int64),
        np.array(scores, np.float64),
        np.array(boxes, np.float64).reshape(-1, 4),
    )


def test_counts_by_hand():
    box, beside = [10, 10, 20, 20], [60, 60, 20, 20]
    ground_truth = ground_truth_of([(1, 9, box), (1, 3, beside), (2, 9, box), (4, 5, box)])
    found = detections_of(
        [
            (1, 9, 0.3, box),
            (1, 3, 0.8, [11, 10, 20, 20]),  # better, on the same object: the emu is called a cat
            (1, 3, 0.2, beside),
            (2, 9, 0.1, box),
            (2, 3, 0.9, [40, 40, 20, 20]),  # on nothing
            (4, 3, 0.9, [10, 10, 20, 7]),  # overlaps too little
        ]
    )
    # Rows and columns cat, dog, emu; the last column is what is missed.
    expected = [[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]]
    assert confuse(ground_truth, found).counts.tolist() == expected
    assert confuse(ground_truth, found, 0.3).counts.tolist()[1] == [1, 0, 0, 0]
    nothing = confuse(ground_truth, detections_of([]))
    assert nothing.counts[:, -1].tolist() == [1, 1, 2]


def test_groups_stand_together_without_counts_of_a_training_set(tmp_path):
    confusion = confuse(ground_truth_of([(1, 9, [0, 0, 9, 9])]), detections_of([]))
    groups = dict(zip(CATEGORIES, ("rare", "frequent", "rare")))
    unknown = {"train_images": -1}
    categories = {id: replace(CATEGORIES[id], group=g, **unknown) for id, g in groups.items()}
    figure = confusion_figure(confusion, categories)
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["frequent", "rare", "missed"]
    to_pixels(figure)
    with draw(confusion, categories, tmp_path / "a.png").with_suffix(".csv").open() as file:
        assert [row["train_images"] for row in csv.DictReader(file)] == ["n/a"]


def test_crowds_are_not_counted():
    ground_truth = ground_truth_of([(1, 3, [0, 0, 9, 9]), (1, 9, [30, 0, 9, 9])], iscrowd=[1, 0])
    assert confuse(ground_truth, detections_of([])).counts.sum(axis=1).tolist() == [0, 0, 1]


def random_set(seed: int) -> tuple[GroundTruth, Detections]:
    generator = np.random.default_rng(seed)

    def boxes(count):
        corners = generator.integers(0, 25, (count, 2))
        return np.concatenate([corners, generator.integers(8, 30, (count, 2))], axis=1).tolist()

    ids = list(CATEGORIES)
    objects = [
        (int(generator.choice([1, 2, 4])), int(generator.choice(ids)), box) for box in boxes(40)
    ]
    found = [
        # Of an unknown class now and then, which calls nothing.
        (int(generator.choice([1, 2, 4])), int(generator.choice([*ids, 7])), score, box)
        for score, box in zip(generator.permutation(120) / 120, boxes(120))
    ]
    return ground_truth_of(objects), detections_of(found)


def iou(a, b) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


@pytest.mark.parametrize("seed", range(3))
def test_counts_against_a_loop(seed):
    ground_truth, found = random_set(seed)
    ids = ground_truth.category_ids.tolist()
    counts = np.zeros((3, 4), int)
    for g in range(len(ground_truth.boxes)):
        image = ground_truth.image[g]
        best, taken_for = -1.0, 3
        for d in range(len(found)):
            if found.image_ids[d] != ground_truth.image_ids[image] or found.category_ids[d] == 7:
                continue
            others = [h for h in range(len(ground_truth.boxes)) if ground_truth.image[h] == image]
            overlaps = [iou(found.boxes[d], ground_truth.boxes[h]) for h in others]
            nearest = others[int(np.argmax(overlaps))]
            if nearest == g and max(overlaps) >= 0.5 and found.scores[d] > best:
                best, taken_for = found.scores[d], ids.index(found.category_ids[d])
        counts[ground_truth.category[g], taken_for] += 1
    assert confuse(ground_truth, found).counts.tolist() == counts.tolist()
    parts = [found.take(found.image_ids == image) for image in (4, 1, 3, 2)]
    assert confuse_in_parts(ground_truth, parts).counts.tolist() == counts.tolist()


def test_table_and_figure(tmp_path):
    box, beside = [10, 10, 20, 20], [60, 60, 20, 20]
    objects = [(1, 9, box), (1, 9, beside), (2, 9, box), (2, 9, beside), (4, 5, box)]
    found = [(1, 3, 0.9, box), (1, 3, 0.8, beside), (2, 5, 0.7, box), (4, 5, 0.6, box)]
    confusion = confuse(ground_truth_of(objects), detections_of(found))
    rows = top_confusions(confusion, CATEGORIES)
    assert [row.category.name for row in rows] == ["emu", "dog"]
    assert markdown_table(rows).splitlines()[2:] == [
        "| emu [r] | 4 | 0 % | 25 % | cat [f] 50 %, dog [c] 25 % |",
        "| dog [c] | 1 | 100 % | 0 % | – |",
    ]
    assert rows[0].by_group == {"rare": 0, "common": 0.25, "frequent": 0.5, "": 0}
    assert len(top_confusions(confusion, CATEGORIES, count=1, num_eaters=1)[0].eaters) == 1
    # Where no class of the tail has objects, all classes are shown; the cat has none here.
    assert [r.category.name for r in top_confusions(confusion, {})] == ["emu", "dog"]

    path = draw(confusion, CATEGORIES, tmp_path / "new" / "confusion.png", "a title")
    assert min(Image.open(path).size) > 200
    with path.with_suffix(".csv").open() as file:
        lines = [(r["class"], r["taken_for"], r["objects"]) for r in csv.DictReader(file)]
    assert lines == [
        ("dog", "dog", "1"),
        ("emu", "cat", "2"),
        ("emu", "dog", "1"),
        ("emu", "missed", "1"),
    ]


def test_a_run_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="no results of an evaluation"):
        confusion_of_run(tmp_path)
    with pytest.raises(UserError, match="no data set is registered as 'nowhere'"):
        confusion_of_run(tmp_path, "nowhere")
