"""
What annotations hold: the classes with their images, objects and repeat factors, how imbalanced
they are, and entries that look like mistakes.

    lt-detectron2 stats data/train.json --images data/images
    lt-detectron2 stats output/model_final.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .sources import SOURCE_HELP, read_source

MAX_ROWS = 40
MAX_ENTRIES = 5
"""Classes, and examples of each kind of mistake, that are shown unless --all is given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=SOURCE_HELP)
    parser.add_argument("--images", default="", help="folder that file names are relative to")
    parser.add_argument("--all", action="store_true", help="list everything, however much")
    parser.add_argument(
        "--picture", metavar="FILE", help="histogram of the classes (default: <source>_classes.png)"
    )
    parser.add_argument("--no-picture", action="store_true", help="print only")


def run(arguments: argparse.Namespace) -> int:
    from ..analysis.class_summary import class_table, describe, describe_repetition

    statistics = read_source(arguments.source, arguments.images)
    print("\n".join([arguments.source, *(f"  {line}" for line in describe(statistics))]))
    num_rows = statistics.num_classes if arguments.all else MAX_ROWS
    print(f"\n{class_table(statistics, num_rows)}\n\n{describe_repetition(statistics)}")
    if not arguments.no_picture:
        from ..analysis.class_histogram import draw

        picture = arguments.picture or f"{Path(arguments.source).stem}_classes.png"
        print(f"\nPicture: {draw(statistics, picture, Path(arguments.source).name)}")
    return 0
