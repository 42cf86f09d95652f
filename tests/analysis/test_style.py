"""Names of classes that matplotlib would take for formulas, in all figures that show names."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lt_detectron2.analysis import class_differences, class_histogram
from lt_detectron2.analysis.confusion import Confusion, confusion_figure
from lt_detectron2.analysis.drawing import LabelledObject, draw_picture
from lt_detectron2.analysis.results import CategoryResult
from lt_detectron2.analysis.style import new_figure, to_pixels, verbatim
from lt_detectron2.evaluation.bootstrap import Interval

from .figures import STATISTICS

NAME = "a$x^^$"


@pytest.mark.parametrize("name", [NAME, "$", "$$$", "5 $", "50 %", "{x}"])
def test_a_text_shows_as_it_is(name: str):
    pictures = []
    for text, style in ((verbatim(name), {}), (name, {"parse_math": False})):
        figure, axes = new_figure(2, 2)
        axes.text(0.1, 0.5, text, **style)
        pictures.append(to_pixels(figure))
    np.testing.assert_array_equal(*pictures)


def test_figures_can_be_drawn(tmp_path):
    names = [NAME] * STATISTICS.num_classes
    class_histogram.draw(replace(STATISTICS, class_names=tuple(names)), tmp_path / "counts.png")
    interval = Interval(1.0, 0.1, 0.5, 1.5, 0.0)
    differences = [
        class_differences.ClassDifference(NAME, "rare", 1, images, 20, 1.0, 2.0, interval)
        for images in (1, 20)
    ]
    class_differences.draw(differences, ("a", "b"), tmp_path / "differences.png")
    category = CategoryResult(NAME, "rare", 1, 1.0)
    confusion = Confusion(np.arange(2), (NAME, NAME), np.array([[1, 4, 0], [0, 2, 1]]))
    figure = confusion_figure(confusion, {0: category, 1: category})
    assert isinstance(figure, Figure) and to_pixels(figure).any()
    assert draw_picture(Image.new("RGB", (60, 60)), [LabelledObject((5, 5, 20, 20), NAME)])
