"""
Make a small imbalanced data set to try things out: 7 classes, 240 generated images, COCO format.

    lt-detectron2 example-data my_data

writes my_data/train.json, my_data/val.json and my_data/images.
"""

from __future__ import annotations

import argparse

from ..errors import DatasetError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where to; must not hold such files yet")
    parser.add_argument("--seed", type=int, default=0, help="of the images (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    from ..data.synthetic.example import write_example

    if arguments.seed < 0:
        raise DatasetError(f"--seed is {arguments.seed}, expected at least 0")
    try:
        files = write_example(arguments.folder, arguments.seed)
    except FileExistsError as error:
        raise DatasetError(f"{error}: name another folder, or delete it first") from error
    except OSError as error:
        raise DatasetError(f"{arguments.folder!r} cannot be written: {error}") from error
    print("\n".join(map(str, files)))
    return 0
