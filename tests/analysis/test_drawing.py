"""Objects drawn on an image: in their group's colour, inside the picture, at its size."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lt_detectron2.analysis.drawing import LabelledObject, draw_picture
from lt_detectron2.analysis.style import GROUP_COLOURS


@pytest.mark.parametrize("least_side, size", [(0, (90, 60)), (300, (300, 200))])
def test_size(least_side, size):
    assert draw_picture(Image.new("RGB", (90, 60)), [], least_side).size == size


def test_image_itself_is_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    drawn = np.asarray(draw_picture(Image.fromarray(pixels), []))
    assert np.abs(drawn.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("group", [*GROUP_COLOURS, ""])
def test_box_and_mask_have_the_colour_of_the_group(group):
    mask = np.zeros((400, 600), dtype=bool)
    mask[200:220, 300:320] = True
    thing = LabelledObject((100, 100, 300, 200), "red_chair", group, 0.834, mask)
    drawn = np.asarray(draw_picture(Image.new("RGB", (600, 400), "white"), [thing])).astype(int)
    colour = 255 * np.array(to_rgb(thing.colour))
    assert np.abs(drawn[200, 99:103] - colour).sum(axis=1).min() < 30  # the left edge
    blend = 255 + 0.45 * (colour - 255)
    assert np.abs(drawn[210, 310] - blend).max() <= 2
    assert (drawn[350, 500] == 255).all() and (drawn[250, 200] == 255).all()
    assert thing.label == "red chair 0.83" + (f" [{group[0]}]" if group else "")
