"""Images of the validation set, annotated and as the detector sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UserError
from ...evaluation import Detections, GroundTruth
from ..drawing import BEST_SIDE, draw_picture
from ..predictions import Objects, by_image, labelled, shown
from ..results import CategoryResult

JPEG_QUALITY = 88
MAX_SIDE = 800


def draw_examples(
    ground_truth: GroundTruth,
    detections: Detections,
    categories: Mapping[int, CategoryResult],
    files: Mapping[int, str],
    folder: Path,
    count: int,
) -> list[tuple[Path, Path]]:
    """
    Pictures of annotations and of detections, a pair for each image.

    Shown are as many detections as the image has objects, the best first, and of those on the same
    object the best: scores of different methods are not on one scale, but their order means the
    same.

    Args:
        ground_truth: of the set.
        detections: on it.
        categories: by id.
        files: image files by image id.
        folder: where the pictures go.
        count: how many images.

    Raises:
        UserError: an image cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = by_image(detections)
    pairs = []
    for position in with_rarest_objects(ground_truth, categories, count):
        image_id = int(ground_truth.image_ids[position])
        image, panels = example(ground_truth, position, found, files.get(image_id))
        paths = tuple(folder / f"example_{image_id}_{kind}.jpg" for kind in ("truth", "found"))
        for path, panel in zip(paths, panels):
            picture = draw_picture(image, labelled(panel, categories), BEST_SIDE)
            picture.save(path, quality=JPEG_QUALITY)
        pairs.append(paths)
    return pairs


def example(
    ground_truth: GroundTruth, position: int, found: Mapping[int, Objects], file: str | None
) -> tuple[Image.Image, tuple[Objects, Objects]]:
    """
    An image, not larger than MAX_SIDE, and on it what is annotated and what is shown as detected.

    Args:
        ground_truth: of the set.
        position: of the image.
        found: by image id, see :func:`~lt_detectron2.analysis.predictions.by_image`.
        file: of the image.

    Raises:
        UserError: the image cannot be read.
    """
    image_id = int(ground_truth.image_ids[position])
    image, scale = _read(file, image_id)
    objects = ground_truth.image == position
    truth = Objects(
        ground_truth.boxes[objects], ground_truth.category_ids[ground_truth.category[objects]]
    )
    panels = truth, shown(found.get(image_id), truth)
    return image, tuple(replace(panel, boxes=scale * panel.boxes) for panel in panels)


def with_rarest_objects(
    ground_truth: GroundTruth, categories: Mapping[int, CategoryResult], count: int
) -> list[int]:
    """Positions of images: for each class from the rarest on, the first that shows it."""
    ids = ground_truth.category_ids.tolist()
    train_images = [categories[id].train_images if id in categories else 0 for id in ids]
    chosen: list[int] = []
    for category in np.argsort(train_images, kind="stable"):
        images = ground_truth.image[ground_truth.category == category]
        new = [image for image in np.unique(images).tolist() if image not in chosen]
        chosen += new[:1]
        if len(chosen) == count:
            break
    return chosen


def _read(file: str | None, image_id: int) -> tuple[Image.Image, float]:
    """The image, not larger than a report needs, and its scale."""
    try:
        image = Image.open(file or "").convert("RGB")
    except OSError as error:
        raise UserError(f"image {image_id} cannot be read: {error}") from error
    scale = min(1.0, MAX_SIDE / max(image.size))
    if scale < 1:
        image = image.resize([round(scale * side) for side in image.size], Image.LANCZOS)
    return image, scale
