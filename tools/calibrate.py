#!/usr/bin/env python
"""
Choose the strength of a post-hoc calibration for a trained detector.

    python tools/calibrate.py --config-file configs/SynthLT/softmax_demo.yaml --method NorCal \
        MODEL.WEIGHTS output/synthlt/softmax_demo/model_final.pth

Runs the detector once over a part of the training set in which each class has its share, measures
AP for each value of the hyper-parameter, and writes the table and the config with the best value:

    python train_net.py --config-file OUTPUT_DIR/calibration/NorCal.yaml --eval-only \
        MODEL.WEIGHTS ...

The images are ones that the detector has been trained on, which flatters rare classes: the chosen
value is a start, and if there are annotated images that nobody trained on, --dataset names them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

from lt_detectron2.calibration.search import GRIDS, best_trial, markdown_table
from lt_detectron2.data.statistics import training_statistics
from lt_detectron2.engine.blame import build_model_or_blame
from lt_detectron2.engine.calibration_search import HeldOut, search, with_value
from lt_detectron2.engine.checkpoint import LongTailCheckpointer
from lt_detectron2.engine.class_means import prepare_calibration
from lt_detectron2.engine.setup import check_config, load_config
from lt_detectron2.errors import ConfigError, UserError

METRICS = ("AP", "APr", "APc", "APf", "AP50")

logger = logging.getLogger("lt_detectron2.tools.calibrate")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        config, table = calibrate(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{table}\n\n{config}")
    return 0


def calibrate(arguments: argparse.Namespace) -> tuple[Path, str]:
    """Search, and write what came out; returns the path of the chosen config, and the table."""
    grid = GRIDS.get(arguments.method)
    parameter = arguments.parameter or (grid.parameter if grid else "")
    values = arguments.values or (grid.values if grid and parameter == grid.parameter else None)
    if not parameter or not values:
        raise ConfigError(
            f"--method {arguments.method} has no usual values: give --parameter and --values"
        )
    _check_choice_of_images(arguments)
    cfg = _config(arguments)
    with_value(cfg, parameter, values[0])  # refuses a parameter that there is not
    folder = Path(cfg.OUTPUT_DIR, "calibration")
    folder.mkdir(parents=True, exist_ok=True)

    statistics = training_statistics(cfg)
    model = build_model_or_blame(cfg).eval()
    checkpointer = LongTailCheckpointer(model, allow_pickle=cfg.LONG_TAIL.ALLOW_PICKLE)
    checkpointer.strict = True
    checkpointer.load(cfg.MODEL.WEIGHTS)
    prepare_calibration(cfg, model)
    measured_on = _on_dataset(cfg, arguments.dataset)
    held_out = HeldOut(
        measured_on, statistics, arguments.share, arguments.max_images, arguments.seed
    )
    trials = search(cfg, model, held_out, statistics, parameter, values)
    neutral = grid.neutral if grid and parameter == grid.parameter else None
    try:
        best = best_trial(trials, arguments.metric, neutral)
    except ValueError as error:
        raise ConfigError(f"--metric: {error}") from error
    table = markdown_table(parameter, trials, METRICS, best)
    where = f"{len(held_out.records)} images of {measured_on.DATASETS.TRAIN[0]}"
    (folder / f"{arguments.method}.md").write_text(
        f"{arguments.method}, box AP in percent on {where}, weights {cfg.MODEL.WEIGHTS}\n\n"
        f"{table}\n\nChosen by {arguments.metric}: {parameter} {best.value:g}\n",
        encoding="utf-8",
    )
    path = folder / f"{arguments.method}.yaml"
    path.write_text(_chosen_config(arguments, cfg, parameter, best.value, where), encoding="utf-8")
    return path, table


def _check_choice_of_images(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.share <= 1:
        raise ConfigError(
            f"--share is {arguments.share:g}, expected more than 0 and at most 1: 0.2 is a fifth "
            "of each class's images"
        )
    if arguments.max_images < 1:
        raise ConfigError(
            f"--max-images is {arguments.max_images}, expected 1 or more: leave it out for 1000"
        )


def _config(arguments: argparse.Namespace) -> CfgNode:
    overrides = [*arguments.opts, "LONG_TAIL.CALIBRATION.NAME", arguments.method]
    cfg = load_config(arguments.config_file, overrides)
    check_config(cfg, argparse.Namespace(eval_only=True))
    setup_logger(name="lt_detectron2", abbrev_name="lt")
    torch.manual_seed(arguments.seed)
    return cfg


def _on_dataset(cfg: CfgNode, name: str) -> CfgNode:
    if not name:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (name,)
    cfg.freeze()
    return cfg


def _chosen_config(
    arguments: argparse.Namespace, cfg: CfgNode, parameter: str, value: float, where: str
) -> str:
    node = with_value(cfg, parameter, value).LONG_TAIL.CALIBRATION[arguments.method]
    lines = [f"      {key}: {number!r}" for key, number in node.items()]
    return "\n".join(
        [
            f"# {parameter} {value:g}: the best {arguments.metric} on {where}.",
            f"_BASE_: {Path(arguments.config_file).resolve()}",
            "LONG_TAIL:",
            "  CALIBRATION:",
            f"    NAME: {arguments.method}",
            f"    {arguments.method}:",
            *lines,
            "",
        ]
    )


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="that the detector was trained with")
    parser.add_argument("--method", required=True, choices=sorted(GRIDS))
    parser.add_argument("--parameter", default="", help="keyword to choose (the usual one)")
    parser.add_argument("--values", type=_numbers, help="what to try, as in 0,0.5,1")
    parser.add_argument("--metric", default="AP", help="what decides (AP)")
    parser.add_argument("--share", type=float, default=0.2, help="of each class's images (0.2)")
    parser.add_argument("--max-images", type=int, default=1000, help="at most so many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (0)")
    parser.add_argument("--dataset", default="", help="measure on this set, not on DATASETS.TRAIN")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
