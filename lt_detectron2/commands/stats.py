"""
What annotations hold: the classes with their images, objects and repeat factors, how imbalanced
they are, and entries that look like mistakes.

    lt-detectron2 stats data/train.json --images data/images
    lt-detectron2 stats output/model_final.pth

The exit status is 1 where a training cannot use the annotations. What only looks like a mistake is
listed once nothing else is wrong with the entries.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .sources import SOURCE_HELP, is_annotation_file, read_source

if TYPE_CHECKING:
    from ..data.doubtful import Finding

MAX_ROWS = 40
MAX_EXAMPLES = 5
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

    findings = _findings(arguments.source, arguments.images)
    broken = any(finding.is_error for finding in findings)
    print(arguments.source)
    if not broken:  # nothing can be counted otherwise
        statistics = read_source(arguments.source, arguments.images)
        print("\n".join(f"  {line}" for line in describe(statistics)))
        num_rows = statistics.num_classes if arguments.all else MAX_ROWS
        print(f"\n{class_table(statistics, num_rows)}\n\n{describe_repetition(statistics)}")
    if findings:
        print("\nA training cannot use what is marked with !; look at what is marked with ?")
    for finding in findings:
        print("\n".join(finding.lines(sys.maxsize if arguments.all else MAX_EXAMPLES)))
    if not (broken or arguments.no_picture):
        from ..analysis.class_histogram import draw

        picture = arguments.picture or f"{Path(arguments.source).stem}_classes.png"
        print(f"\nPicture: {draw(statistics, picture, Path(arguments.source).name)}")
    return int(broken)


def _findings(source: str, images: str) -> list[Finding]:
    """What is doubtful in an annotation file; other sources hold counts only."""
    if not is_annotation_file(source):
        return []
    from ..data.datasets.annotation_json import read_annotation_json
    from ..data.doubtful import find_doubtful

    return find_doubtful(read_annotation_json(source), images or None)
