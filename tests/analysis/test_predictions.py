"""Pictures of detections: which images and boxes are shown, and that labels do not hide others."""

import numpy as np
import pytest
from PIL import Image

from lt_detectron2.analysis.drawing import place_label
from lt_detectron2.analysis.predictions import (
    Objects,
    by_image,
    draw,
    most_different,
    num_right,
    objects_of,
    shown,
)
from lt_detectron2.evaluation import Detections

from .figures import read_csv
from .test_class_figures import write_results

CATEGORY_IDS = [3, 8]  # of classes 0 and 1
BOX, BESIDE = [10, 10, 20, 20], [60, 60, 20, 20]


def detections_of(*rows):
    images, categories, scores, boxes = zip(*rows)
    boxes = np.array(boxes, np.float32)
    return Detections(np.array(images), np.array(categories), np.array(scores), boxes)


def record(image_id, *objects, file=""):
    annotations = [{"category_id": c, "bbox": box} for c, box in objects]
    return {"image_id": image_id, "file_name": str(file), "annotations": annotations}


RECORDS = [record(1, (0, BOX)), record(2, (0, BOX), (1, BESIDE)), record(5)]
WORSE = detections_of((2, 3, 0.9, BOX), (1, 3, 0.8, BOX))
BETTER = detections_of(
    (2, 8, 0.2, BESIDE), (2, 3, 0.9, BOX), (2, 8, 0.3, [11, 10, 20, 20]), (1, 3, 0.8, BOX)
)


def test_one_detection_for_each_object():
    truth = objects_of(RECORDS[1], CATEGORY_IDS)
    panel = shown(by_image(BETTER)[2], truth)
    # The second best sees the same object as the best.
    assert panel.category_ids.tolist() == [3, 8] and panel.scores.tolist() == [0.9, 0.2]
    assert num_right(panel, truth) == 2
    assert num_right(shown(by_image(WORSE).get(2), truth), truth) == 1
    assert num_right(shown(by_image(WORSE).get(4), truth), truth) == 0
    assert len(shown(by_image(BETTER)[2], objects_of(RECORDS[0], CATEGORY_IDS)).boxes) == 1


def test_images_with_the_greatest_difference():
    runs = (by_image(WORSE), by_image(BETTER))
    chosen = most_different(RECORDS, CATEGORY_IDS, *runs, 5)
    assert [r["image_id"] for r in chosen] == [2, 1]  # nothing is to be seen in image 5


def test_figure(tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(np.zeros((100, 120, 3), np.uint8)).save(file)
    folders = []
    for name, detections in (("a", WORSE), ("b", BETTER)):
        rows = ("3,red_cat,r,3,3,1,1,n/a", "8,dog,f,900,2,3,4,50.5")
        folders.append(write_results(tmp_path / name, *rows))
        with (folders[-1] / "inference" / "detections.npz").open("wb") as saved:
            np.savez(saved, **detections.columns())
    records = [record(r["image_id"], file=file) | r | {"file_name": str(file)} for r in RECORDS]
    rows = read_csv(draw(folders, ("A", "B"), records, tmp_path / "predictions.png", 1))
    assert [(r["panel"], r["class"], r["score"]) for r in rows] == [
        ("ground truth", "red_cat", ""),
        ("ground truth", "dog", ""),
        ("A", "red_cat", "0.9"),
        ("B", "red_cat", "0.9"),
        ("B", "dog", "0.2"),
    ]


@pytest.mark.parametrize("x", [0.0, 90.0, 190.0])
def test_labels_make_room(x):
    taken = []
    for _ in range(3):
        box = [x, 60.0, 10.0, 40.0]
        place = place_label(box, "a rather long name", (200, 200), 5.3, taken)
        assert (place[:2] >= 0).all() and (place[:2] + place[2:] <= 200).all()
        for other in taken:
            low = np.maximum(place[:2], other[:2])
            high = np.minimum(place[:2] + place[2:], other[:2] + other[2:])
            assert (high <= low + 1e-9).any()
        taken.append(place)


def test_nothing_found():
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert num_right(nothing, objects_of(RECORDS[0], CATEGORY_IDS)) == 0
