"""
Cut a long tail out of any COCO annotation file; the same file and seed give the same tail.

    lt-detectron2 make-lt my/train.json my/train_lt.json --profile zipf
    lt-detectron2 make-lt my/train.json my/train_lt.json --profile exponential --factor 100

    bags          the profile of LVIS v0.5, as BAGS cut COCO-LT
    zipf          objects fall as 1 / rank^exponent
    exponential   objects fall by the factor, from the largest to the smallest category
    simcal        SimCal's list of images; for instances_train2017.json of COCO only

Images and their files are not touched; objects whose annotation is removed become background.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import DatasetError, UserError

SIMCAL = "simcal"
SIMCAL_IMAGES = "datasets/coco_lt_simcal.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="annotations in COCO format")
    parser.add_argument("target", help="file to write")
    parser.add_argument(
        "--profile", choices=("bags", "zipf", "exponential", SIMCAL), default="bags"
    )
    parser.add_argument("--exponent", type=float, default=1.0, help="of zipf (default: 1)")
    parser.add_argument("--factor", type=float, default=100.0, help="of exponential (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    from ..analysis.class_summary import describe
    from ..data.datasets.annotation_json import (
        read_annotation_json,
        summarize_annotation_json,
        write_annotation_json,
    )
    from .sources import read_source

    target = Path(arguments.target)
    if target.resolve() == Path(arguments.source).resolve():
        raise UserError(f"{arguments.target!r} is the source itself: write to another file")
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}, expected at least 0")
    summarize_annotation_json(arguments.source)  # says what is wrong before anything is written
    content, annotations = _cut(read_annotation_json(arguments.source), arguments)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_annotation_json(content, annotations, target)
    except OSError as error:
        raise DatasetError(
            f"{arguments.target!r} cannot be written ({error.strerror}): name another file"
        ) from error
    print("\n".join([str(target), *(f"  {line}" for line in describe(read_source(str(target))))]))
    return 0


def _cut(dataset: dict[str, Any], arguments: argparse.Namespace) -> tuple[dict, list]:
    if arguments.profile != SIMCAL:
        from ..data.long_tail_cut import cut_long_tail

        return cut_long_tail(
            dataset,
            arguments.profile,
            exponent=arguments.exponent,
            factor=arguments.factor,
            seed=arguments.seed,
        )
    import numpy as np

    from ..analysis.runs import REPOSITORY
    from ..data.datasets.coco_lt_rules import (
        AnnotationColumns,
        read_listed_images,
        select_listed,
    )

    columns = AnnotationColumns.from_entries(dataset.get("annotations", []))
    selection = select_listed(columns, read_listed_images(REPOSITORY / SIMCAL_IMAGES))
    images = set(columns.image_ids[selection].tolist())
    content = {key: value for key, value in dataset.items() if key != "annotations"}
    content["images"] = [image for image in dataset["images"] if image["id"] in images]
    return content, [dataset["annotations"][row] for row in np.flatnonzero(selection)]
