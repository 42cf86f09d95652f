"""
Detect in images, folders, patterns, videos or a camera, with any checkpoint of this library.

    lt-detectron2 demo output/model_final.pth photo.jpg more_photos/ 'others/*.png'
    lt-detectron2 demo output/model_final.pth film.mp4 --threshold 0.1

No data set is needed: class names and frequency groups travel in the checkpoint, and the config is
the config.yaml beside it. Labels and boxes have the colour of the class's group. Pictures and
detections.json go to --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", help="checkpoint, such as output/model_final.pth")
    parser.add_argument("inputs", nargs="*", help="images, videos, folders of them, patterns")
    parser.add_argument("--output", default="demo", help="folder of what is written (demo)")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score shown (0.3)")
    parser.add_argument("--most", type=int, default=100, help="detections of an image (100)")
    parser.add_argument("--webcam", type=int, metavar="NUMBER", help="camera to record till Ctrl-C")
    parser.add_argument("--frames", type=int, default=0, help="at most so many of a video (all)")
    parser.add_argument("--config-file", default="", help="(config.yaml beside the checkpoint)")
    parser.add_argument("--names", metavar="FILE", help="class names, one a line")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..analysis.detect import JSON_FILE, detect_all, find_inputs
    from ..engine.detector import Detector

    if not arguments.inputs and arguments.webcam is None:
        raise UserError("nothing to look at: name images, folders or videos, or give --webcam 0")
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold {arguments.threshold} is no score: give a number in [0, 1]")
    if arguments.most < 1:
        raise UserError(f"--most is {arguments.most}: show at least 1 detection of an image")
    if arguments.frames < 0:
        raise UserError(f"--frames is {arguments.frames}: give a number, or 0 for all frames")
    inputs = find_inputs(arguments.inputs)
    names = read_names(arguments.names) if arguments.names else None
    detector = Detector(arguments.weights, arguments.config_file, arguments.set, names)
    output = Path(arguments.output)
    done, failed = detect_all(
        detector,
        inputs,
        output,
        threshold=arguments.threshold,
        most=arguments.most,
        webcam=arguments.webcam,
        max_frames=arguments.frames,
    )
    print(f"{done} done, {failed} unreadable: {output / JSON_FILE}, and pictures beside it")
    return 1 if failed else 0


def read_names(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--names: {file!r} cannot be read as text ({error})") from error
    return [line.strip() for line in lines if line.strip()]
