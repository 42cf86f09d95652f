"""
All entries of an annotation file that end a training, or are left out, or look like mistakes.

A training stops at the first error, and says nothing of what is only doubtful.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .annotation_schema import (
    annotation_problem,
    category_problem,
    has_too_few_points,
    image_problem,
    is_id,
    is_number,
    shown,
)

SMALLEST_SIDE = 2.0
"""Pixels, below which the side of a box looks like a slip of the mouse."""

OUTSIDE_TOLERANCE = 1.0
"""Pixels by which a box may leave its image."""

MIN_SHARE = 0.5
"""Of the boxes that must look like another format for all of them to be suspected of it."""

OPENED_IMAGES = 200
TABLES = {"category": "categories", "image": "images", "annotation": "annotations"}


@dataclass(frozen=True)
class Finding:
    """
    One kind of problem.

    Args:
        problem: what is the matter, and what to do.
        examples: where, one for each case.
        is_error: no training begins before it is mended.
    """

    problem: str
    examples: tuple[str, ...]
    is_error: bool = False

    def lines(self, max_examples: int) -> list[str]:
        """For the screen."""
        mark = "!" if self.is_error else "?"
        shown = list(self.examples[:max_examples])
        hidden = len(self.examples) - len(shown)
        if hidden:
            shown.append(f"... and {hidden:,} more")
        return [f"{mark} {len(self.examples):,} {self.problem}", *(f"    {e}" for e in shown)]


def find_doubtful(
    dataset: Mapping[str, Any], image_root: str | Path | None = None
) -> list[Finding]:
    """
    All errors in an annotation file, or everything doubtful in one without.

    Args:
        dataset: content of a COCO or LVIS file.
        image_root: the folder of images; without it no file is looked for.
    """
    errors = [finding for finding in _errors(dataset) if finding.examples]
    if errors:  # what else there is relies on entries being what they should
        return errors
    found = [
        *_doubtful_categories(dataset),
        *_doubtful_images(dataset),
        *_doubtful_annotations(dataset),
        *_doubtful_boxes(dataset),
        *([] if image_root is None else _doubtful_files(dataset, Path(image_root))),
    ]
    return sorted((f for f in found if f.examples), key=lambda finding: not finding.is_error)


def _errors(dataset: Mapping[str, Any]) -> Iterator[Finding]:
    """What :func:`~lt_detectron2.data.annotation_schema.check_annotation_file` would refuse."""
    tables = {}
    for kind, key in TABLES.items():
        entries = dataset.get(key, ())
        tables[kind] = [entry for entry in entries if isinstance(entry, dict)]
        yield Finding(
            f"{key} are no objects: remove them",
            tuple(
                f"{kind} number {position}: {shown(entry)}"
                for position, entry in enumerate(entries)
                if not isinstance(entry, dict)
            ),
            True,
        )
    images, categories = (
        {e["id"]: e for e in tables[kind] if isinstance(e.get("id"), int | str)}
        for kind in ("image", "category")
    )
    problems = []
    for kind, find in (
        ("category", category_problem),
        ("image", image_problem),
        ("annotation", lambda entry: annotation_problem(entry, images, categories)),
    ):
        for entry in tables[kind]:
            problem = find(entry)
            if problem:
                problems.append(f"{kind} {shown(entry.get('id'))} {problem}")
        ids = [entry.get("id") for entry in tables[kind]]
        yield Finding(
            f"{TABLES[kind]} have no whole number as id: number them",
            tuple(
                f"{kind} number {position}: {shown(id)}"
                for position, id in enumerate(ids)
                if not is_id(id)
            ),
            True,
        )
        yield Finding(
            f"ids of {TABLES[kind]} occur twice: renumber them", _twice(filter(is_id, ids)), True
        )
    yield Finding("entries are not as COCO and LVIS have them", tuple(problems), True)


def _twice(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(f"{v!r}, {n} times" for v, n in Counter(values).items() if n > 1)


def _doubtful_categories(dataset: Mapping[str, Any]) -> Iterator[Finding]:
    categories = dataset["categories"]
    used = {entry.get("category_id") for entry in dataset.get("annotations", ())}
    spelled = defaultdict(set)
    for category in categories:
        name = str(category.get("name"))
        spelled["".join(name.lower().replace("_", " ").replace("-", " ").split())].add(name)
    yield Finding(
        "class names differ in spelling only: is it one class?",
        tuple(
            " and ".join(map(repr, sorted(names))) for names in spelled.values() if len(names) > 1
        ),
    )
    yield Finding(
        "class names occur twice: is it one class?", _twice(c.get("name") for c in categories)
    )
    yield Finding(
        "class names have line breaks, or spaces around them, which tables show as they are",
        tuple(
            repr(name)
            for name in (str(category.get("name")) for category in categories)
            if name != name.strip() or len(name.splitlines()) > 1
        ),
    )
    yield Finding(
        "categories have no object and cannot be learned: add images, or remove the category",
        tuple(f"{c.get('name')!r} (id {c['id']})" for c in categories if c.get("id") not in used),
    )


def _doubtful_images(dataset: Mapping[str, Any]) -> Iterator[Finding]:
    images = dataset["images"]
    yield Finding(
        "files are listed twice: objects of one entry are background in the other",
        _twice(i["file_name"] for i in images if "file_name" in i),
    )
    used = {entry.get("image_id") for entry in dataset.get("annotations", ())}
    yield Finding(
        "images have no object; DATALOADER.FILTER_EMPTY_ANNOTATIONS False trains on them, too",
        tuple(str(i.get("file_name", i["id"])) for i in images if i.get("id") not in used),
    )


def _doubtful_annotations(dataset: Mapping[str, Any]) -> Iterator[Finding]:
    entries = dataset.get("annotations", ())
    names = {c.get("id"): c.get("name") for c in dataset["categories"]}
    polygons = [
        _name(entry)
        for entry in entries
        if isinstance(entry.get("segmentation"), list)
        and any(map(has_too_few_points, entry["segmentation"]))
    ]
    yield Finding(
        "objects have polygons of fewer than 3 points, which are left out", tuple(polygons)
    )
    masks = [bool(e.get("segmentation")) for e in entries if not e.get("iscrowd")]
    if any(masks) and not all(masks):
        without = (_name(e) for e in entries if not e.get("iscrowd") and not e.get("segmentation"))
        yield Finding("objects have no mask, others have: MODEL.MASK_ON needs all", tuple(without))
    places = defaultdict(list)
    for entry in entries:
        if _box(entry):
            # Two decimals, for boxes that are shares of their image fall together otherwise.
            digits = 2 if max(_box(entry)) <= 1 else 0
            place = (entry.get("image_id"), *(round(value, digits) for value in _box(entry)))
            places[place].append(entry)
    same, other = [], []
    for together in places.values():
        if len(together) > 1:
            ids = ", ".join(str(entry.get("id")) for entry in together)
            classes = {entry.get("category_id") for entry in together}
            kind = same if len(classes) == 1 else other
            listed = ", ".join(repr(names.get(c)) for c in sorted(classes, key=str))
            kind.append(f"image {together[0].get('image_id')}, annotations {ids}: {listed}")
    yield Finding("boxes are annotated twice: remove one", tuple(same))
    yield Finding("boxes have two classes: which is right?", tuple(other))


def _doubtful_boxes(dataset: Mapping[str, Any]) -> Iterator[Finding]:
    entries = dataset.get("annotations", ())
    sizes = {i.get("id"): (i.get("width"), i.get("height")) for i in dataset["images"]}
    flat, small, outside, relative = [], [], [], []
    corners = 0
    for entry in entries:
        box = _box(entry)
        if box is None:
            continue
        x, y, width, height = box
        if not (width > 0 and height > 0):
            flat.append(f"{_name(entry)}: {_shown_box(box)}")
            continue
        if max(box) <= 1:
            relative.append(f"{_name(entry)}: {_shown_box(box)}")
        if min(width, height) < SMALLEST_SIDE:
            small.append(f"{_name(entry)}: {width:g} x {height:g}")
        image_width, image_height = sizes.get(entry.get("image_id"), (None, None))
        if not image_width or not image_height:
            continue
        over = max(-x, -y, x + width - image_width, y + height - image_height)
        if over > OUTSIDE_TOLERANCE:
            outside.append(f"{_name(entry)}: {_shown_box(box)} in {image_width} x {image_height}")
            corners += x < width <= image_width and y < height <= image_height
    yield Finding("boxes have no area and are left out", tuple(flat))
    total = max(1, len(entries))
    if len(relative) > MIN_SHARE * total:
        yield Finding("boxes are shares of the image: COCO wants pixels", tuple(relative), True)
        return
    if corners > MIN_SHARE * len(outside) and len(outside) > MIN_SHARE * total:
        hint = "boxes leave their image; are they x1 y1 x2 y2? COCO wants x y width height"
    else:
        hint = "boxes leave their image: are its width and height right?"
    yield Finding(hint, tuple(outside))
    yield Finding(f"boxes are narrower than {SMALLEST_SIDE:g} pixels", tuple(small))


def _doubtful_files(dataset: Mapping[str, Any], root: Path) -> Iterator[Finding]:
    images = [image for image in dataset["images"] if "file_name" in image]
    missing = [i["file_name"] for i in images if not os.path.isfile(root / i["file_name"])]
    hint = ""
    if any("\\" in name and os.path.isfile(root / name.replace("\\", "/")) for name in missing):
        hint = ": write / instead of \\ in file_name"
    yield Finding(f"image files are not in {str(root)!r}{hint}", tuple(missing), True)
    if not missing:
        yield Finding(
            "image files have another size than the annotations say", _resized(images, root)
        )


def _resized(images: list[Mapping[str, Any]], root: Path) -> tuple[str, ...]:
    """Of some images, evenly spaced: opening all of a large set takes minutes."""
    from PIL import Image

    different = []
    for image in images[:: -(-len(images) // OPENED_IMAGES) or 1]:
        try:
            with Image.open(root / image["file_name"]) as file:
                size = file.size
        except OSError as error:
            different.append(f"{image['file_name']}: cannot be read ({error})")
            continue
        if "width" in image and size != (image["width"], image.get("height")):
            different.append(
                f"{image['file_name']}: {size[0]} x {size[1]}, annotated as "
                f"{image.get('width')} x {image.get('height')}"
            )
    return tuple(different)


def _name(entry: Mapping[str, Any]) -> str:
    return f"annotation {entry.get('id')}"


def _shown_box(box: list[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def _box(entry: Mapping[str, Any]) -> list[float] | None:
    """The box, or None where it is none."""
    box = entry.get("bbox")
    return box if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) else None
