"""Run a detector over images and videos: labelled pictures, and one JSON file of all it found."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from ..files import replacing
from ..progress import track
from .drawing import BEST_SIDE, LabelledObject, draw_picture

if TYPE_CHECKING:
    from detectron2.structures import Instances

    from ..engine.detector import Detector

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
JSON_FILE = "detections.json"
JPEG_QUALITY = 92
FALLBACK_RATE = 25.0
"""Frames a second of a video that does not say."""


def find_inputs(names: Sequence[str]) -> list[Path]:
    """
    The files that arguments name: images and videos, folders of them, and patterns.

    Raises:
        UserError: one of them names nothing.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
            files = sorted(f for f in path.iterdir() if f.suffix.lower() in known)
            problem = f"no image or video in folder {name!r}: expected files like *.jpg or *.mp4"
        elif path.is_file():
            files, problem = [path], ""
        else:
            files = [Path(f) for f in sorted(glob.glob(str(path), recursive=True))]
            files = [f for f in files if f.is_file()]
            problem = f"no file, folder or pattern {name!r}: check the path"
        if not files:
            raise UserError(problem)
        found += files
    return list(dict.fromkeys(found))


def detect_all(
    detector: Detector,
    inputs: Sequence[Path],
    output: Path,
    *,
    threshold: float,
    most: int,
    webcam: int | None = None,
    max_frames: int = 0,
) -> tuple[int, int]:
    """
    Write a picture for each image, a video for each video, and ``detections.json``.

    No input is written over, also where ``output`` is its own folder.
    The JSON file is written also when something ends this early, with what was done until then.

    Args:
        detector: what finds.
        inputs: see :func:`find_inputs`.
        output: folder.
        threshold: least score of what is shown.
        most: detections of an image to show.
        webcam: number of a camera to record, until Ctrl-C.
        max_frames: of a video or camera; 0 is all.

    Returns:
        how many inputs were done, and how many could not be read.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {str(output)!r} ({error.strerror})") from error
    entries: list[dict[str, Any]] = []

    def found_in(image: Image.Image, **where: Any) -> Image.Image:
        objects = _objects(detector, detector(np.asarray(image)), threshold, most)
        entries.append({**where, **_entry(image, objects)})
        return draw_picture(image, objects[::-1], 0 if "frame" in where else BEST_SIDE)

    free_name = _FreeNames(output, inputs)
    done = failed = 0
    try:
        for path in track(inputs, "detecting", unit="file"):
            try:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    target = free_name(path.stem, ".mp4")
                    _detect_in_video(str(path), path.name, target, found_in, max_frames)
                else:
                    _detect_in_image(path, free_name(path.stem, ".jpg"), found_in)
                done += 1
            except UserError as error:
                if len(inputs) == 1:
                    raise
                failed += 1
                logger.warning("%s", error)
        if webcam is not None:
            target = free_name(f"webcam{webcam}", ".mp4")
            _detect_in_video(webcam, target.stem, target, found_in, max_frames)
            done += 1
    finally:
        _write_json(detector, entries, threshold, output / JSON_FILE)
    _remark(entries, threshold)
    return done, failed


def _detect_in_image(path: Path, target: Path, found_in: Callable[..., Image.Image]) -> None:
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{str(path)!r} cannot be read as an image ({error})") from error
    found_in(image, file=str(path), picture=target.name).save(target, quality=JPEG_QUALITY)


def _detect_in_video(
    source: str | int,
    name: str,
    target: Path,
    found_in: Callable[..., Image.Image],
    max_frames: int,
) -> None:
    cv2 = _opencv()
    video = cv2.VideoCapture(source)
    if not video.isOpened():
        what = f"camera {source}" if isinstance(source, int) else f"video {source!r}"
        raise UserError(f"{what} cannot be opened: check that it is there, and its format")
    rate = video.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate <= 1000 else FALLBACK_RATE
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    limits = [number for number in (total, max_frames) if number > 0]
    writer = None
    try:
        frames = _frames(video, max_frames)
        expected = min(limits) if limits else None
        for number, frame in enumerate(track(frames, name, unit="frame", total=expected)):
            image = Image.fromarray(frame[:, :, ::-1].copy())
            picture = found_in(image, file=str(name), picture=target.name, frame=number)
            if writer is None:
                kind = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(target), kind, rate, picture.size)
                if not writer.isOpened():
                    raise UserError(
                        f"{target} cannot be written: check the folder and its disk, and that "
                        "OpenCV can encode MPEG-4"
                    )
            writer.write(np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]))
    finally:
        video.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise UserError(f"{name!r} has no frame that can be read")


def _frames(video: Any, max_frames: int) -> Iterator[np.ndarray]:
    number = 0
    while not max_frames or number < max_frames:
        is_there, frame = video.read()
        if not is_there:
            return
        yield frame
        number += 1


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "videos and cameras need OpenCV, which is not installed: "
            "pip install opencv-python-headless"
        ) from error
    return cv2


def _objects(
    detector: Detector, found: Instances, threshold: float, most: int
) -> list[LabelledObject]:
    found = found[found.scores >= threshold][:most]
    boxes = found.pred_boxes.tensor
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    masks = found.pred_masks.numpy() if found.has("pred_masks") else [None] * len(found)
    return [
        LabelledObject(box, detector.class_names[c], detector.groups[c], score, mask)
        for box, c, score, mask in zip(
            boxes, found.pred_classes.tolist(), found.scores.tolist(), masks
        )
    ]


def _entry(image: Image.Image, objects: Sequence[LabelledObject]) -> dict[str, Any]:
    detections = []
    for thing in objects:
        detection = {
            "name": thing.name,
            "group": thing.group,
            "score": round(thing.score, 5),
            "box": [round(float(value), 2) for value in thing.box],
        }
        if thing.mask is not None:
            detection["segmentation"] = _run_lengths(thing.mask)
        detections.append(detection)
    return {"width": image.width, "height": image.height, "detections": detections}


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def _write_json(
    detector: Detector, entries: Sequence[dict[str, Any]], threshold: float, path: Path
) -> None:
    counts = detector.statistics.image_count.tolist()
    content = {
        "weights": detector.cfg.MODEL.WEIGHTS,
        "threshold": threshold,
        "classes": [
            {"name": name, "group": group, "train_images": count}
            for name, group, count in zip(detector.class_names, detector.groups, counts)
        ],
        "images": list(entries),
    }
    with replacing(str(path)) as file:
        json.dump(content, file, indent=1)


class _FreeNames:
    """
    File names in a folder, each given once: a.png and a.jpg become a.jpg and a_2.jpg.

    Args:
        folder: to write to.
        inputs: files whose names are taken, if they lie there.
    """

    def __init__(self, folder: Path, inputs: Sequence[Path]):
        self._folder = folder
        self._taken = {path.resolve() for path in inputs}

    def __call__(self, stem: str, suffix: str) -> Path:
        number, path = 1, self._folder / f"{stem}{suffix}"
        while path.resolve() in self._taken:
            number += 1
            path = self._folder / f"{stem}_{number}{suffix}"
        self._taken.add(path.resolve())
        return path


def _remark(entries: Sequence[dict[str, Any]], threshold: float) -> None:
    if entries and not any(entry["detections"] for entry in entries):
        logger.warning(
            "Nothing scores %g or more. Scores of long-tail methods are often low: try a lower "
            "--threshold.",
            threshold,
        )
