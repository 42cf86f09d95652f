"""An exported detector on the disk, compared with the original, and what is to know about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..engine.detector import Detector
from ..errors import ExportError
from .comparison import TOLERANCE, Difference, compare
from .formats import Runner, export_onnx, export_torchscript
from .plain import plain_detector
from .traceable import TraceableDetector

FILES = {"torchscript": "model.ts", "onnx": "model.onnx", "plain": "model_plain.pth"}
"""What each format is written as."""

PLAIN_CONFIG_FILE = "model_plain.yaml"
"""Beside the plain checkpoint; not config.yaml, which in the folder of a training is that of it."""

DESCRIPTION_FILE = "export.json"

EXAMPLE_SIZES = ((192, 256), (256, 192), (160, 320))
"""Height and width of generated images, before they are resized like test images."""


@dataclass(frozen=True)
class Exported:
    """
    Attributes:
        path: the file.
        differences: from the original, for each image of the comparison.
    """

    path: Path
    differences: list[Difference]


def export(
    detector: Detector,
    file_format: str,
    output: Path,
    images: Sequence[np.ndarray] = (),
    *,
    tolerance: float = TOLERANCE,
) -> Exported:
    """
    Write a detector as one of FILES and export.json beside it; "plain" has a config, too.

    Args:
        detector: the original.
        file_format: one of FILES.
        output: folder to write to.
        images: (height, width, 3) uint8 RGB, to compare on; generated ones if there are none.
        tolerance: see :func:`~.comparison.compare`.

    Raises:
        ExportError: the format is unknown or cannot hold this detector, or the comparison fails.
            What was not compared to the end is removed, whatever ends it.
    """
    if file_format not in FILES:
        raise ExportError(f"no format {file_format!r}: expected one of {', '.join(FILES)}")
    pixels = [detector.pixels(image).float() for image in images or example_images()]
    pixels = [image.to(detector.cfg.MODEL.DEVICE) for image in pixels]
    original = TraceableDetector(detector.model)
    path = output / FILES[file_format]
    if file_format != "plain" and detector.cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        raise ExportError(
            "a trace of Detectron2's RetinaNet keeps the number of boxes of one image; "
            "LongTailRetinaNet is the same detector without that: add --set "
            "MODEL.META_ARCHITECTURE LongTailRetinaNet, with the same weights"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        if file_format == "plain":
            exported = _write_plain(detector, path)
        else:
            write = export_torchscript if file_format == "torchscript" else export_onnx
            exported = write(original, pixels[0], path, detector.class_names)
    except OSError as error:
        raise ExportError(
            f"{str(path)!r} cannot be written ({error.strerror}): name another folder (--output)"
        ) from error
    try:
        differences = compare(original, exported, pixels, tolerance=tolerance)
    except BaseException:  # Ctrl-C, too
        path.unlink()
        if file_format == "plain":
            path.with_name(PLAIN_CONFIG_FILE).unlink()
        raise
    description = _describe(detector, file_format, original.output_names, differences)
    (output / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n", "utf-8")
    return Exported(path, differences)


def example_images() -> list[np.ndarray]:
    """Images of several sizes with coloured boxes, (height, width, 3) uint8."""
    generator = np.random.default_rng(0)
    images = []
    for height, width in EXAMPLE_SIZES:
        image = np.full((height, width, 3), 120, np.uint8)
        for _ in range(12):
            y, x = generator.integers(0, (height - 16, width - 16))
            h, w = generator.integers(16, 80, 2)
            image[y : y + h, x : x + w] = generator.integers(0, 256, 3)
        images.append(image)
    return images


def _write_plain(detector: Detector, path: Path) -> Runner:
    cfg, model = plain_detector(detector.cfg, detector.model)
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    names = list(detector.class_names)
    torch.save({"model": state, "class_names": names, "__author__": "lt_detectron2"}, path)
    path.with_name(PLAIN_CONFIG_FILE).write_text(cfg.dump(), "utf-8")
    return TraceableDetector(model)


def _describe(
    detector: Detector,
    file_format: str,
    outputs: Sequence[str],
    differences: Sequence[Difference],
) -> dict[str, Any]:
    """What a program that runs the file must know."""
    node = detector.cfg.INPUT
    return {
        "format": file_format,
        "file": FILES[file_format],
        "input": {
            "image": "(3, height, width) float32, values 0..255",
            "channels": node.FORMAT,
            "min_size": node.MIN_SIZE_TEST,
            "max_size": node.MAX_SIZE_TEST,
        },
        "outputs": list(outputs),
        "classes": list(detector.class_names),
        "groups": list(detector.groups),
        "versions": {"lt_detectron2": __version__, "torch": torch.__version__},
        "comparison": [asdict(image) for image in differences],
    }
