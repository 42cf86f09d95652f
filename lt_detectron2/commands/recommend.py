"""
Propose a method for a training set, with the reason and what was measured, and write its config.

    lt-detectron2 recommend my/train.json --images my/images --val my/val.json
    lt-detectron2 recommend my/train.json --trained output/own_data/softmax/model_final.pth
    lt-detectron2 recommend --check my.yaml

With --check, a config of yours is searched for parts that make up for the imbalance twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, UserError
from .sources import SOURCE_HELP, is_annotation_file, read_source

if TYPE_CHECKING:
    from ..analysis.advice import Advice

ONCE = (
    "class weights or a balancing sampler on top would make up for the imbalance twice; "
    "`lt-detectron2 recommend --check my.yaml` looks for that"
)
BASES = "configs/own_data"
BASE, MASK_BASE = "Base-Faster-RCNN-R50-FPN.yaml", "Base-Mask-RCNN-R50-FPN.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", help=SOURCE_HELP)
    parser.add_argument("--images", default="", help="folder that file names are relative to")
    parser.add_argument("--val", default="", help="annotations to evaluate on; else a part is kept")
    parser.add_argument("--val-images", default="", help="as --images, of --val")
    parser.add_argument("--masks", action="store_true", help="train masks as well")
    parser.add_argument(
        "--trained", metavar="WEIGHTS", help="a plain detector of yours: improve it"
    )
    parser.add_argument("--base", help=f"config to build on (default: {BASES}/{BASE})")
    parser.add_argument("--output", default="recommended.yaml", help="config to write")
    parser.add_argument("--check", metavar="CONFIG", help="look at this config instead")


def run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        return check(arguments.check)
    if not arguments.source:
        raise UserError("nothing to look at: give annotations, or --check a config")
    if not is_annotation_file(arguments.source) and (arguments.val or arguments.val_images):
        raise UserError(
            f"--val and --val-images go with an annotation file, got {arguments.source!r}: give "
            "the file instead, or set DATASETS.TEST in the config of --base"
        )
    from ..analysis.advice import PLAIN, recommend
    from ..analysis.class_summary import describe

    statistics = read_source(arguments.source, arguments.images)
    advice = recommend(statistics, trained=bool(arguments.trained))
    print("\n".join([arguments.source, *(f"  {line}" for line in describe(statistics))]))
    print(f"\nTrain {advice.method}")
    for reason in advice.reasons:
        print(f"  - {reason}")
    for evidence in advice.evidence:
        print("\n".join(f"  {line}" for line in evidence.lines()))
    if advice.evidence:
        comparison = "" if advice.method == PLAIN else ": compare it with softmax"
        print(
            "  (60 classes, a small detector from scratch; on your images the order may be another"
            f"{comparison})"
        )
    path = write_config(arguments, advice)
    chosen, mind = [], [*advice.warnings, *([ONCE] if advice.settings else [])]
    if is_annotation_file(arguments.source):
        chosen = _chosen(path)
        mind += _doubts(arguments)
    for title, lines in (
        ("Set for these annotations", chosen),
        ("Then try", advice.later),
        ("Mind", mind),
    ):
        if lines:
            print("\n".join([f"\n{title}", *(f"  - {line}" for line in lines)]))
    print(f"\nWritten: {path}\n  python train_net.py --config-file {path}")
    return 0


def _chosen(config_file: Path) -> list[str]:
    """What a training with this config will set by itself, and why."""
    from ..data.statistics import classifier_node
    from ..engine.setup import keys_set, load_config

    # Nothing is split off yet: that is the training's to do.
    cfg = load_config(str(config_file), ["LONG_TAIL.DATA.VAL_SHARE", "0.0"])
    data, solver, test = cfg.LONG_TAIL.DATA, cfg.SOLVER, cfg.TEST
    node = classifier_node(cfg)
    threshold = f"MODEL.{node}.SCORE_THRESH_TEST"
    kept = keys_set(str(config_file), ())

    def because(key: str, reason: str) -> str:
        return "as the base has it" if key in kept else reason

    schedule = because(
        "SOLVER.MAX_ITER",
        f"{data.EPOCHS:g} epochs, and at least {data.MIN_ITERATIONS} iterations",
    )
    scores = because(threshold, "rare classes have low scores, Detectron2's 0.05 would hide them")
    detections = because(
        "TEST.DETECTIONS_PER_IMAGE",
        "Detectron2's 100 may be full before the first object of a rare class",
    )
    return [
        f"SOLVER.MAX_ITER {solver.MAX_ITER}, in batches of {solver.IMS_PER_BATCH}: {schedule}",
        f"{threshold} {cfg.MODEL[node].SCORE_THRESH_TEST:g}: {scores}",
        f"TEST.DETECTIONS_PER_IMAGE {test.DETECTIONS_PER_IMAGE}: {detections}",
    ]


def _doubts(arguments: argparse.Namespace) -> list[str]:
    """What would end a training with the written config, or make its result worthless."""
    from ..data.datasets.annotation_json import read_annotation_json

    dataset = read_annotation_json(arguments.source)
    doubts = []
    folder = _images(arguments)
    names = [image["file_name"] for image in dataset["images"] if "file_name" in image]
    missing = sum(not (folder / name).is_file() for name in names)
    if missing:
        doubts.append(
            f"{missing:,} of {len(names):,} images are not in {str(folder)!r}: a training stops at "
            "the first of them; `lt-detectron2 stats` lists them, --images names their folder"
        )
    objects = [e for e in dataset.get("annotations", ()) if not e.get("iscrowd")]
    if arguments.masks and not all(entry.get("segmentation") for entry in objects):
        doubts.append("not every object has a mask, which --masks needs: add them, or leave it out")
    if arguments.val and Path(arguments.val).samefile(arguments.source):
        doubts.append(
            "--val is the training set, whose AP says how well the detector knows it by heart: "
            "leave it out, and a part is kept for validation"
        )
    return doubts


def check(config_file: str) -> int:
    """Name what a config does twice; 1 if there is something."""
    from ..engine.compensation import double_compensation
    from ..engine.setup import load_config

    found = double_compensation(load_config(config_file))
    print("\n".join(found) or f"{config_file}: nothing makes up for the imbalance twice")
    return int(bool(found))


def write_config(arguments: argparse.Namespace, advice: Advice) -> Path:
    """Write the recommended config, in which paths are absolute so that it works from anywhere."""
    import yaml

    settings: dict[str, Any] = {"_BASE_": str(_base(arguments))}
    settings |= {key: dict(value) for key, value in advice.settings.items()}
    if arguments.trained:
        settings["MODEL"] = {"WEIGHTS": str(_file("--trained", arguments.trained))}
    if is_annotation_file(arguments.source):
        places = {
            "TRAIN": arguments.source,
            "TRAIN_IMAGES": _images(arguments),
        }
        if arguments.val:
            places["VAL"] = _file("--val", arguments.val)
            places["VAL_IMAGES"] = arguments.val_images or arguments.images or places["VAL"].parent
        node = settings.setdefault("LONG_TAIL", {})
        absolute = {key: str(Path(path).absolute()) for key, path in places.items()}
        node["DATA"] = {**node.get("DATA", {}), **absolute}
    path = Path(arguments.output)
    settings["OUTPUT_DIR"] = f"output/{path.stem}"
    reasons = "".join(f"# {reason}.\n" for reason in advice.reasons)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000)
    head = f"# {advice.method}, proposed by lt-detectron2 recommend:\n{reasons}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {str(path)!r} cannot be written ({error.strerror})") from error
    return path


def _images(arguments: argparse.Namespace) -> Path:
    return Path(arguments.images or Path(arguments.source).parent)


def _base(arguments: argparse.Namespace) -> Path:
    from ..analysis.runs import REPOSITORY

    if arguments.base:
        return _file("--base", arguments.base)
    base = REPOSITORY / BASES / (MASK_BASE if arguments.masks else BASE)
    if not base.is_file():
        raise ConfigError(
            f"{str(base)!r} is missing, configs are part of the repository: give one with --base"
        )
    return base


def _file(option: str, path: str) -> Path:
    if not Path(path).is_file():
        raise ConfigError(f"{option}: no file {path!r}")
    return Path(path).absolute()
