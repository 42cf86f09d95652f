"""Objects on an image: boxes, masks and labels in the colours of the frequency groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from .boxes import pairwise_iou
from .style import DOTS_PER_INCH, GROUP_COLOURS, verbatim

FONT_SIZE = 5.5
LINE_SHARE = 0.25
"""Width of a line by the size of the font."""
UNKNOWN_COLOUR = "#555555"
MASK_OPACITY = 0.45
BEST_SIDE = 600
"""Long side, in pixels, of a picture on which FONT_SIZE reads well."""


@dataclass(frozen=True, eq=False)
class LabelledObject:
    """
    Args:
        box: x, y, width, height in pixels of the image.
        name: of the class.
        group: "rare", "common", "frequent" or "" where it is not known.
        score: None for annotations.
        mask: (height, width) bool of the whole image, or None.
    """

    box: Sequence[float]
    name: str
    group: str = ""
    score: float | None = None
    mask: np.ndarray | None = None

    @property
    def label(self) -> str:
        """What stands on the picture, such as "red chair 0.83 [r]"."""
        score = "" if self.score is None else f" {self.score:.2f}"
        group = f" [{self.group[0]}]" if self.group else ""
        return self.name.replace("_", " ") + score + group

    @property
    def colour(self) -> str:
        """That of its group."""
        return GROUP_COLOURS.get(self.group, UNKNOWN_COLOUR)


def draw_objects(
    axes: Axes,
    image: Image.Image,
    objects: Sequence[LabelledObject],
    width: float,
    font_size: float = FONT_SIZE,
) -> None:
    """
    Fill axes with an image and objects, the later ones above the earlier.

    Args:
        axes: to draw on.
        image: RGB.
        objects: to draw.
        width: of the axes in inches.
        font_size: of labels, in points.
    """
    axes.imshow(_with_masks(image, objects), aspect="equal")
    axes.set_axis_off()
    pixels_per_point = image.width / (72 * width)
    taken: list[np.ndarray] = []
    for thing in objects:
        line_width = font_size * LINE_SHARE
        x, y, *size = thing.box
        frame = Rectangle((x, y), *size, fill=False, edgecolor=thing.colour, linewidth=line_width)
        axes.add_patch(frame)
        place = place_label(thing.box, thing.label, image.size, font_size * pixels_per_point, taken)
        taken.append(place)
        label = axes.text(
            place[0] + place[2] / 2,
            place[1] + place[3] / 2,
            verbatim(thing.label),
            fontsize=font_size,
            ha="center",
            va="center",
            color="white",
            bbox={"facecolor": thing.colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )
        label.set_in_layout(False)  # a long name must not shrink the pictures


def place_label(
    box: Sequence[float],
    text: str,
    image_size: tuple[int, int],
    font_pixels: float,
    taken: Sequence[np.ndarray],
) -> np.ndarray:
    """Where a label hides least of those before it: x, y, width, height in pixels."""
    x, y, box_width, box_height = box
    letters = sum(1.8 if east_asian_width(letter) in "WF" else 1 for letter in text)
    width, height = font_pixels * (0.55 * letters + 0.5), font_pixels * 1.5
    corners = [
        (left, top)
        for top in (y - height, y + box_height, y)
        for left in (x, x + box_width - width)
    ]
    limits = max(image_size[0] - width, 0), max(image_size[1] - height, 0)
    places = [np.array([*np.clip(corner, 0, limits), width, height]) for corner in corners]
    if not taken:
        return places[0]
    hidden = pairwise_iou(np.array(places), np.array(taken)).sum(axis=1)
    return places[int(hidden.argmin())]


def draw_picture(
    image: Image.Image, objects: Sequence[LabelledObject], least_side: int = 0
) -> Image.Image:
    """
    The image with objects on it.

    Args:
        image: RGB.
        objects: to draw.
        least_side: an image whose long side is shorter is enlarged to it, so that labels fit.
    """
    enlarged = max(1.0, least_side / max(image.size))
    width, height = (round(enlarged * length) / DOTS_PER_INCH for length in image.size)
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    # Larger on a large picture, which a screen shows smaller.
    font_size = FONT_SIZE * max(1.0, max(width, height) * DOTS_PER_INCH / BEST_SIDE)
    draw_objects(figure.add_axes((0, 0, 1, 1)), image, objects, width, font_size)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _with_masks(image: Image.Image, objects: Sequence[LabelledObject]) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB"))
    if all(thing.mask is None for thing in objects):
        return pixels
    blended = pixels.astype(np.float32)
    for thing in objects:
        if thing.mask is not None:
            colour = 255 * np.array(to_rgb(thing.colour), dtype=np.float32)
            blended[thing.mask] += MASK_OPACITY * (colour - blended[thing.mask])
    return blended.round().astype(np.uint8)
