"""
One annotation file into a training and a validation part, in which rare classes are in both.

The same file, share and seed give the same parts on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from .datasets.annotation_json import read_annotation_json, write_annotation_json
from .synthetic.draws import Draws

DIGEST_LETTERS = 8


def split_annotations(
    json_file: str | Path, folder: str | Path, *, share: float = 0.2, seed: int = 0
) -> tuple[Path, Path]:
    """
    Writes `train.json` and `val.json` into a folder of their own, unless they are there.

    Args:
        json_file: annotations in COCO or LVIS format.
        folder: in which `split_<name>_<digest>` is made; the digest is that of the file's content,
            the share and the seed, so that the parts never belong to something else.
        share: of each class's images that goes to validation, in (0, 1).
        seed: of the draws.

    Returns:
        the two files.

    Raises:
        DatasetError: the file cannot be used, has too few images, or the folder cannot be written.
    """
    if not 0 < share < 1:
        raise DatasetError(
            f"LONG_TAIL.DATA.VAL_SHARE is {share}, expected a number between 0 and 1: 0.2 keeps a "
            "fifth of each class's images for validation"
        )
    json_file = Path(json_file)
    dataset = read_annotation_json(json_file)
    digest = hashlib.sha256(json_file.read_bytes() + f"{share} {seed}".encode()).hexdigest()
    folder = Path(folder) / f"split_{json_file.stem}_{digest[:DIGEST_LETTERS]}"
    parts = folder / "train.json", folder / "val.json"
    if not all(path.is_file() for path in parts):
        validation = choose_validation_images(dataset, share=share, seed=seed)
        if not any(_is_object_in(entry, validation) for entry in dataset.get("annotations", ())):
            raise DatasetError(
                f"{json_file}: expected images with objects to keep some for validation, found "
                f"{len(dataset['images'])} images, in which none can be spared in training, where "
                "each class needs one: name a file in LONG_TAIL.DATA.VAL, or set "
                "LONG_TAIL.DATA.VAL_SHARE 0 to train without validation"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, is_validation in zip(parts, (False, True)):
                content, annotations = _part(dataset, validation, is_validation)
                content["info"] = {
                    **(dataset.get("info") or {}),
                    "split": {"source": json_file.name, "share": share, "seed": seed},
                }
                write_annotation_json(content, annotations, path)
        except OSError as error:
            raise DatasetError(
                f"the split of {str(json_file)!r} cannot be written to {str(folder)!r} "
                f"({error.strerror}): set OUTPUT_DIR to a folder of yours, or name "
                "LONG_TAIL.DATA.VAL"
            ) from error
    return parts


def choose_validation_images(
    dataset: Mapping[str, Any], *, share: float = 0.2, seed: int = 0
) -> set[Any]:
    """
    Ids of the images that go to validation.

    Class by class, the rarest first, images are drawn until the class has its share in validation,
    rounded, and at least one. No image is drawn that is the last one for training of any class; so
    a class with one image is in training only, and one with two is in both, unless other classes
    of these images forbid it. Of images without objects the same share is drawn.
    """
    ids = sorted((image["id"] for image in dataset["images"]), key=str)
    classes_of: dict[Any, set[Any]] = {id: set() for id in ids}
    for entry in dataset.get("annotations", ()):
        if _is_object_in(entry, classes_of):
            classes_of[entry["image_id"]].add(entry.get("category_id"))
    images_of: dict[Any, list[Any]] = {}
    for id in ids:
        for category in classes_of[id] or {None}:  # None: images without objects
            images_of.setdefault(category, []).append(id)
    for_training = {category: len(images) for category, images in images_of.items()}
    draws = Draws(seed)
    chosen: set[Any] = set()
    for category in sorted(images_of, key=lambda c: (len(images_of[c]), str(c))):
        images = images_of[category]
        missing = max(1, round(share * len(images))) - len(chosen.intersection(images))
        for position in draws.permutation(len(images)).tolist():
            id = images[position]
            present = classes_of[id] or {None}
            if missing <= 0:
                break
            if id in chosen or any(for_training[c] < 2 for c in present):
                continue
            chosen.add(id)
            missing -= 1
            for c in present:
                for_training[c] -= 1
    return chosen


def _is_object_in(entry: Mapping[str, Any], images: Container[Any]) -> bool:
    return not entry.get("iscrowd") and entry.get("image_id") in images


def _part(
    dataset: Mapping[str, Any], validation: set[Any], is_validation: bool
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    content = {key: value for key, value in dataset.items() if key != "annotations"}
    content["images"] = [i for i in dataset["images"] if (i["id"] in validation) == is_validation]
    own = {image["id"] for image in content["images"]}
    return content, [a for a in dataset.get("annotations", ()) if a.get("image_id") in own]


def classes_of_one_part(parts: tuple[Path, Path]) -> dict[str, list[str]]:
    """Names of classes with objects in one part only, by "train" and "val"."""
    names, present = {}, []
    for path in parts:
        dataset = read_annotation_json(path)
        names = {category["id"]: str(category.get("name")) for category in dataset["categories"]}
        present.append({entry["category_id"] for entry in dataset["annotations"]})
    train, val = present
    return {
        "train": sorted(names[id] for id in train - val),
        "val": sorted(names[id] for id in val - train),
    }
