"""What the tests of figures share: reading their CSV, and writing runs without training them."""

import csv

from PIL import Image

from lt_detectron2.data.statistics import write_statistics
from lt_detectron2.statistics import ClassStatistics

STATISTICS = ClassStatistics(
    [3, 700, 40, 9000], [2, 300, 30, 500], 1000, ("newt", "dog", "emu", "cat")
)
BY_FREQUENCY = [3, 1, 2, 0]


def read_csv(png):
    """The rows beside a figure, after a look at the figure's size."""
    assert min(Image.open(png).size) > 200
    with png.with_suffix(".csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(rows, column):
    return [float(row[column]) for row in rows]


def write_counts(folder, statistics=STATISTICS):
    folder.mkdir(parents=True, exist_ok=True)
    write_statistics(statistics, folder / "class_statistics.json")
    return folder
