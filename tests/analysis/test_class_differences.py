"""When the difference of a class is called clear."""

import pytest

from lt_detectron2.analysis.class_differences import MIN_IMAGES, ClassDifference, difference_table
from lt_detectron2.evaluation.bootstrap import Interval


def difference(val_images, low, high):
    interval = Interval((low + high) / 2, 1.0, low, high, 0.0)
    return ClassDifference("emu", "rare", 3, val_images, 20, 60.0, 70.0, interval)


@pytest.mark.parametrize(
    ("val_images", "low", "high", "expected"),
    [
        (1, 10.0, 10.0, "too few images"),  # every sample with the image has the same AP
        (MIN_IMAGES - 1, 1.0, 5.0, "too few images"),
        (MIN_IMAGES, 1.0, 5.0, "yes"),
        (MIN_IMAGES, -5.0, -1.0, "yes"),
        (MIN_IMAGES, -1.0, 5.0, "no"),
    ],
)
def test_few_images_are_never_clear(val_images, low, high, expected):
    found = difference(val_images, low, high)
    assert found.is_clear is (expected == "yes")
    row = difference_table([found], ("a", "b")).splitlines()[-1]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:5] == ["emu", "rare", "3", str(val_images), "20"] and cells[-1] == expected
