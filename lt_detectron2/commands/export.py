"""
Write a detector for programs without this package, and compare it with the original on images.

    lt-detectron2 export output/model_final.pth --format torchscript --output exported
    lt-detectron2 export output/model_final.pth --format onnx --images photos/

    torchscript   one file for torch.jit.load, in Python or C++; any method
    onnx          one file for onnxruntime and others; any method; pip install onnx onnxruntime
    plain         a checkpoint and config of Detectron2's own classes, where that is exact

The config is the config.yaml beside the checkpoint. What is exported runs on the CPU, or where
--set MODEL.DEVICE says. docs/export.md says how to run the files, and which methods can be plain.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ..export.comparison import Difference

FORMATS = ("torchscript", "onnx", "plain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", help="checkpoint, such as output/model_final.pth")
    parser.add_argument("--format", choices=FORMATS, default="torchscript", help="(torchscript)")
    parser.add_argument("--output", default="exported", help="folder of what is written (exported)")
    parser.add_argument(
        "--images", nargs="+", default=[], help="images to compare on (generated ones)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference of scores, and of boxes as a share of the image (1e-4)",
    )
    parser.add_argument("--config-file", default="", help="(config.yaml beside the checkpoint)")
    parser.add_argument("--names", metavar="FILE", help="class names, one a line")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..engine.detector import Detector
    from ..export.write import export
    from .demo import read_names

    if not arguments.tolerance >= 0:
        raise UserError(f"--tolerance is {arguments.tolerance}, expected a number >= 0")
    images = _read_images(arguments.images)
    names = read_names(arguments.names) if arguments.names else None
    overrides = ["MODEL.DEVICE", "cpu", *arguments.set]
    detector = Detector(arguments.weights, arguments.config_file, overrides, names)
    exported = export(
        detector,
        arguments.format,
        Path(arguments.output),
        images,
        tolerance=arguments.tolerance,
    )
    print("\n".join([str(exported.path), *map(_line, exported.differences)]))
    return 0


def _read_images(names: list[str]) -> list[np.ndarray]:
    from detectron2.data.detection_utils import read_image

    from ..analysis.detect import IMAGE_SUFFIXES, find_inputs

    files = [path for path in find_inputs(names) if path.suffix.lower() in IMAGE_SUFFIXES]
    if names and not files:
        raise UserError(f"--images names no image: expected files like *{IMAGE_SUFFIXES[0]}")
    images = []
    for path in files:
        try:
            images.append(read_image(str(path), "RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{str(path)!r} cannot be read as an image ({error})") from error
    return images


def _line(image: Difference) -> str:
    height, width = image.size
    masks = f", masks {image.masks:.1e}" if image.masks else ""
    return (
        f"  {height} x {width}: {image.detections} detections, exported {image.exported}; largest "
        f"difference of scores {image.scores:.1e}, of boxes {image.boxes:.1e} pixels{masks}"
    )
