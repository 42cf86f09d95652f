"""
Metrics of saved detections on an annotation file, without a model, a config or Detectron2.

    python -m lt_detectron2.evaluation lvis_v1_val.json output/inference/detections.npz
    python -m lt_detectron2.evaluation instances_val2017.json results.json --tasks bbox segm
    python -m lt_detectron2.evaluation val.json detections.npz --bootstrap 1000 --output report
    python -m lt_detectron2.evaluation val.json detections.npz --backend lvis

Detections are the detections.npz of an evaluation or a JSON file of results. With `--backend lvis`
the official package computes precision and recall as well, or with `--backend hotcoco` a faster
one of somebody else, and any difference is an error.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.datasets.annotation_json import FEDERATED_KEYS
from ..errors import UserError, about
from ..files import replacing
from .detections import Detections
from .evaluation_files import RESULTS_FILE, make_writable, timed
from .ground_truth import GroundTruth
from .groups import (
    CategoryGroups,
    class_difference,
    groups_from_frequency,
    training_counts,
    training_groups,
)
from .index_cache import load_ground_truth
from .matching import IOU_TYPES
from .measure import Measurement, measure
from .options import EvaluationOptions
from .oracle import ORACLES
from .protocol import Protocol


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.output:
            make_writable(options.output)  # before the work, which may take long
        found, train_counts = evaluate(options)
        if options.backend in ORACLES:
            check_with_oracle(options, found)
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write("\n".join(found.lines()) + "\n")
    if options.output:
        files = found.files(os.path.basename(options.annotations), train_counts)
        for name in sorted(files, key=lambda name: name == RESULTS_FILE):
            mode = "wb" if name.endswith(".npz") else "w"
            with replacing(os.path.join(options.output, name), mode) as file:
                files[name](file)


def evaluate(options: argparse.Namespace) -> tuple[Measurement, dict[str, np.ndarray]]:
    """Everything that the command line asks for, and training counts by category if known."""
    extras = EvaluationOptions(
        bootstrap=options.bootstrap, errors=options.errors, instance_bins=tuple(options.bins)
    )
    with timed(f"Read {options.predictions}"):
        detections = Detections.load(options.predictions)
    with timed(f"Read {options.annotations}"):
        with_masks = options.tasks != ["bbox"]
        file_format = options.format or _format_of(options.annotations)
        index, _ = load_ground_truth(options.annotations, file_format, with_masks=with_masks)
    if index is None:
        raise UserError(f"{options.annotations} has no annotations: pass those of a validation set")
    protocol = _protocol(options, file_format)
    with about(options.predictions):
        detections.kept.check(protocol, index.fingerprint)
    partitions, train_counts = (groups_from_frequency(index),), {}
    if options.statistics:
        partitions, train_counts = _training(options, index, file_format)
    with about(options.predictions):
        found = measure(index, detections, options.tasks, protocol, partitions, extras)
    return found, train_counts


def check_with_oracle(options: argparse.Namespace, found: Measurement) -> None:
    """
    Compares with what the backend of the command line says.

    Raises:
        UserError: a precision or recall differs, or the backend cannot compute it.
    """
    detections = Detections.load(options.predictions)
    for task, curves in found.curves.items():
        with timed(f"{task}: computed by {options.backend}"):
            oracle = ORACLES[options.backend]
            expected = oracle(options.annotations, detections, task, curves.protocol)
        for name in ("precision", "recall"):
            ours, theirs = getattr(curves, name), getattr(expected, name)
            if not np.array_equal(ours, theirs, equal_nan=True):
                raise UserError(
                    f"{task}: {np.count_nonzero(~np.isclose(ours, theirs, 0, 0, equal_nan=True))} "
                    f"of {ours.size} values of {name} differ from those of {options.backend}: "
                    "please report this"
                )
        logging.info("%s: every precision and recall equals that of %s", task, options.backend)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lt_detectron2.evaluation", description=__doc__.strip().splitlines()[0]
    )
    parser.add_argument("annotations", help="LVIS or COCO JSON file")
    parser.add_argument("predictions", help="detections.npz, or a JSON file of results")
    parser.add_argument("--format", choices=("lvis", "coco"), help="by default found out")
    parser.add_argument("--tasks", nargs="+", choices=IOU_TYPES, default=["bbox"])
    parser.add_argument("--cap", type=int, help="per image (LVIS: 300), or category and image")
    parser.add_argument(
        "--fixed", type=int, nargs="?", const=10_000, help="AP-fixed, cap per category (10000)"
    )
    parser.add_argument("--bootstrap", type=int, default=0, help="samples of the images")
    parser.add_argument("--errors", action="store_true", help="kinds of errors and their cost")
    parser.add_argument("--statistics", help="class_statistics.json of the training")
    parser.add_argument("--bins", type=int, nargs="*", default=[10, 100, 1000], help="edges")
    parser.add_argument("--backend", choices=("columns", *ORACLES), default="columns")
    parser.add_argument("--output", help="folder for results.json, per_category.csv and more")
    return parser


def _format_of(path: str) -> str:
    """LVIS files say of images which categories were looked for; COCO files do not."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "coco"  # whoever reads it next says what is wrong
    return "lvis" if any(f'"{key}"' in text for key in FEDERATED_KEYS) else "coco"


def _protocol(options: argparse.Namespace, file_format: str) -> Protocol:
    if options.fixed is not None:
        fixed = Protocol.lvis_fixed(options.fixed)
        return replace(fixed, empty_detections_count=file_format == "coco")
    if file_format == "coco":
        return Protocol.coco(100 if options.cap is None else options.cap)
    cap = 300 if options.cap is None else options.cap
    return Protocol(max_dets_per_image=None if cap < 0 else cap)


def _training(
    options: argparse.Namespace, index: GroundTruth, file_format: str
) -> tuple[tuple[CategoryGroups, ...], dict[str, np.ndarray]]:
    from ..statistics import ClassStatistics  # loads torch

    try:
        with open(options.statistics, encoding="utf-8") as file:
            statistics = ClassStatistics.from_state_dict(json.load(file))
    except (OSError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"expected the counts of a training in {options.statistics}, they cannot be read "
            f"({error}): give the class_statistics.json of its output folder"
        ) from error
    classes = {id: number for number, id in enumerate(index.category_ids.tolist())}
    counts = index, statistics, classes
    partitions = training_groups(*counts, options.bins, thirds=file_format == "coco")
    # A warning only: files spell the same classes in different ways.
    difference = class_difference(statistics.class_names, index.category_names)
    if difference:
        logging.warning(
            "The classes of %s have other names than those of %s: %s. If they are other classes, "
            "the groups are wrong: give the class_statistics.json of a training on these classes",
            *(options.statistics, options.annotations, difference),
        )
    return partitions, training_counts(*counts)


if __name__ == "__main__":
    main()
