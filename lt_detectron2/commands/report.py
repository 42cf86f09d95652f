"""
The report of a run, report.md and report.html, written anew from what lies in its output folder.

    lt-detectron2 report output/synthlt/eqlv2_demo

Every training and evaluation leaves one; LONG_TAIL.REPORT False switches that off. The examples
need the images of the validation set; all else is read from the folder.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="+", help="OUTPUT_DIR of a training or evaluation")


def run(arguments: argparse.Namespace) -> int:
    from ..analysis.run_report import write_report

    for folder in arguments.folder:
        for path in write_report(folder):
            print(path)
    return 0
