"""Annotation files in the formats of COCO and LVIS: what they hold, and records of the latter."""

from __future__ import annotations

import codecs
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycocotools.mask
from detectron2.structures import BoxMode

from ...errors import DatasetError, reason
from ...files import replacing
from ...progress import counter
from ..annotation_schema import check_annotation_file, check_tables, field, has_too_few_points

FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
"""The lists that LVIS keeps for every image: classes known to be absent, and partly annotated."""

ANNOTATIONS_PER_WRITE = 1000
SAMPLED_FILES = 50


@dataclass(frozen=True)
class AnnotationSummary:
    """
    What can be said about an annotation file without its images.

    Args:
        format: "lvis" where images say which classes were looked for in them, else "coco".
        category_ids: K ids, ascending; class i has the i-th id.
        class_names: K names.
        num_images: all of them.
        num_annotated: images with at least one object; crowds do not count.
        num_objects: annotations that are no crowds.
        most_objects: of one image.
        file_names: of some images, evenly spaced over the file, relative to the folder of images.
        without_polygon: ids of the annotations none of whose polygons has three points.
    """

    format: str
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    num_images: int
    num_annotated: int
    num_objects: int
    most_objects: int
    file_names: tuple[str, ...]
    without_polygon: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> AnnotationSummary:
        """What ``dataclasses.asdict`` gave, after JSON made lists of its tuples."""
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()})

    @property
    def class_of_category(self) -> dict[int, int]:
        """Classes 0..K-1 by category id."""
        return {id: index for index, id in enumerate(self.category_ids)}


def read_annotation_json(path: str | Path) -> dict[str, Any]:
    """
    The top-level object of an annotation file.

    Raises:
        DatasetError: the file is missing, is cut short, or holds something else.
    """
    try:
        content = Path(path).read_bytes()
        dataset = json.loads(content)
    except FileNotFoundError as error:
        raise DatasetError(
            f"annotation file {str(path)!r} is missing: check the path; built-in data sets lie "
            "under the folder that DETECTRON2_DATASETS names"
        ) from error
    except OSError as error:
        raise DatasetError(
            f"annotation file {str(path)!r} cannot be read ({error.strerror}): give a JSON file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: not valid JSON ({reason(error)}): get it again, its download or export may "
            "have been cut short"
        ) from error
    _check_encoding(content, path)
    check_tables(dataset, str(path))
    return dataset


def _check_encoding(content: bytes, path: str | Path) -> None:
    """Other programs, pycocotools among them, read JSON as UTF-8 without a mark only."""
    marks = codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
    if content.startswith(marks):
        encoding = "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-16"
        raise DatasetError(
            f"{path} begins with a byte order mark, as programs of Windows write it: save it as "
            f"UTF-8 without; in Python path.write_text(path.read_text({encoding!r}), 'utf-8') does"
        )


def summarize_annotation_json(path: str | Path) -> AnnotationSummary:
    """
    Format and categories of a file. It is read and checked only once, until it changes.

    Raises:
        DatasetError: as :func:`read_annotation_json`, or a record cannot be used.
    """
    key = _state_of_file(path)
    if key not in _summaries:
        _summaries[key] = _summary(read_annotation_json(path), str(path))
    return _summaries[key]


def known_summary(path: str | Path) -> AnnotationSummary | None:
    """The summary, if this process has read the file."""
    return _summaries.get(_state_of_file(path))


def remember_summary(path: str | Path, summary: AnnotationSummary) -> None:
    """Take the summary from somebody who has read the file."""
    _summaries[_state_of_file(path)] = summary


_summaries: dict[tuple[str, int, int], AnnotationSummary] = {}


def _state_of_file(path: str | Path) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return str(path), 0, 0  # reading it says what is wrong
    return str(path), status.st_mtime_ns, status.st_size


def _summary(dataset: Mapping[str, Any], path: str) -> AnnotationSummary:
    check_annotation_file(dataset, path)
    is_federated = any(key in image for image in dataset["images"] for key in FEDERATED_KEYS)
    if is_federated:
        _check_lvis(dataset, path)
    else:
        _check_coco(dataset, path)
    categories = sorted(dataset["categories"], key=lambda category: category["id"])
    images = dataset["images"]
    objects = [e for e in dataset.get("annotations", ()) if not e.get("iscrowd")]
    per_image = Counter(entry["image_id"] for entry in objects)
    return AnnotationSummary(
        format="lvis" if is_federated else "coco",
        category_ids=tuple(category["id"] for category in categories),
        class_names=tuple(category.get("name", str(category["id"])) for category in categories),
        num_images=len(images),
        num_annotated=len(per_image),
        num_objects=len(objects),
        most_objects=max(per_image.values(), default=0),
        file_names=tuple(
            image["file_name"]
            for image in images[:: -(-len(images) // SAMPLED_FILES)]
            if "file_name" in image
        ),
        without_polygon=tuple(
            entry["id"]
            for entry in dataset.get("annotations", ())
            if isinstance(entry.get("segmentation"), list)
            and entry["segmentation"]
            and all(map(has_too_few_points, entry["segmentation"]))
        ),
    )


def write_annotation_json(
    content: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], target: Path
) -> None:
    """
    Writes an annotation file, whole or not at all.

    Args:
        content: everything but the annotations.
    """
    with replacing(target) as file:
        file.write(json.dumps(content, ensure_ascii=False)[:-1] + ', "annotations": [')
        with counter(target.name, unit="annotations", total=len(annotations)) as progress:
            for start in range(0, len(annotations), ANNOTATIONS_PER_WRITE):
                block = annotations[start : start + ANNOTATIONS_PER_WRITE]
                file.write((", " if start else "") + json.dumps(block)[1:-1])
                progress.update(len(block))
        file.write("]}")


def _check_lvis(dataset: Mapping[str, Any], path: str) -> None:
    """The evaluation needs both lists of every image; better to hear of it before a training."""
    for image in dataset["images"]:
        for key in FEDERATED_KEYS:
            if key not in image:
                raise DatasetError(
                    f"{path} has LVIS's lists of the classes that were looked for, but image "
                    f"{image['id']} lacks {key!r}: add both lists to every image (they may be "
                    "empty), or remove them from all"
                )


def _check_coco(dataset: Mapping[str, Any], path: str) -> None:
    """What Detectron2's loader of COCO's format takes for granted."""
    for image in dataset["images"]:
        field(image, "file_name", "image", path)
    for category in dataset["categories"]:
        field(category, "name", "category", path)
    for entry in dataset.get("annotations", ()):
        if entry.get("ignore"):
            raise DatasetError(
                f"{path}: annotation {entry['id']} is to be ignored, which COCO's format does not "
                "know: set its iscrowd to 1, or remove it"
            )


def load_lvis_records(json_file: str | Path, image_root: str | Path) -> list[dict[str, Any]]:
    """
    Reads annotations in LVIS format, of any categories.

    Detectron2's own loader knows the categories of LVIS only, and leaves the lists of an image as
    category ids. Here `neg_category_ids` and `not_exhaustive_category_ids` are classes 0..K-1 like
    the `category_id` of the annotations. Annotations to `ignore` become crowds, which nobody
    trains on.

    An image is looked for under its `file_name`. Where it has none, or there is no such file, the
    last two parts of its `coco_url` count (`train2017/000000000009.jpg`).

    Returns:
        One dict per image in Detectron2's format, in the order of the image ids.

    Raises:
        DatasetError: the file cannot be read, lacks a field, has an id twice, or refers to an
            image or category that it does not list.
    """
    summary = summarize_annotation_json(json_file)
    dataset = read_annotation_json(json_file)
    images = sorted(dataset["images"], key=lambda image: image["id"])
    annotations = _annotations_by_image(dataset, summary, json_file)
    class_of = summary.class_of_category
    path_of = _path_finder(images[0], Path(image_root), str(json_file))
    return [
        {
            "file_name": path_of(image),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            **{key: _known_classes(image.get(key, ()), class_of) for key in FEDERATED_KEYS},
            "annotations": annotations[image["id"]],
        }
        for image in images
    ]


def _annotations_by_image(
    dataset: Mapping[str, Any], summary: AnnotationSummary, path: str | Path
) -> dict[int, list[dict[str, Any]]]:
    class_of = summary.class_of_category
    annotations = defaultdict(list)
    for entry in dataset.get("annotations", []):  # a file of test images has none
        record = {
            "bbox": entry["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": class_of[entry["category_id"]],
        }
        if entry.get("segmentation"):
            record["segmentation"] = _segmentation(entry, path)
        if "iscrowd" in entry or entry.get("ignore"):
            record["iscrowd"] = int(bool(entry.get("iscrowd") or entry.get("ignore")))
        annotations[entry["image_id"]].append(record)
    return annotations


def _segmentation(entry: Mapping[str, Any], path: str | Path) -> Any:
    segmentation = entry["segmentation"]
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return pycocotools.mask.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    for polygon in segmentation:
        if has_too_few_points(polygon):
            raise DatasetError(
                f"{path}: annotation {entry['id']} has a polygon of {len(polygon)} numbers, "
                "expected x and y of at least 3 points: mend or remove it"
            )
    return segmentation


def _path_finder(first_image: Mapping[str, Any], image_root: Path, path: str) -> Any:
    """How this file names its images; the first one decides for all of them."""
    has_name, has_url = "file_name" in first_image, "coco_url" in first_image
    if not has_name and not has_url:
        raise DatasetError(
            f"{path}: image {first_image['id']} has neither file_name nor coco_url: name its file"
        )
    if has_name and (not has_url or os.path.isfile(image_root / first_image["file_name"])):
        return lambda image: str(image_root / field(image, "file_name", "image", path))
    return lambda image: str(
        image_root.joinpath(*field(image, "coco_url", "image", path).split("/")[-2:])
    )


def _known_classes(category_ids: Sequence[int], class_of: Mapping[int, int]) -> list[int]:
    # A subset of the categories of LVIS leaves the others in the lists of the images.
    return [class_of[id] for id in category_ids if id in class_of]
