#!/usr/bin/env python
"""
Train or evaluate a detector. Command line and conventions are Detectron2's:

    python train_net.py --config-file configs/SynthLT/eqlv2_demo.yaml
    python train_net.py --config-file ... --num-gpus 8
    python train_net.py --config-file ... --resume
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    python train_net.py --config-file ... --eval-only LONG_TAIL.EVAL.PREDICTIONS detections.npz
    torchrun --nproc_per_node 8 train_net.py --config-file ...

Without a GPU it runs on the CPU, and --num-gpus N then means N processes.

SIGTERM and Ctrl-C end a training after its step with a checkpoint, and exit status 143 or 130.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from lt_detectron2.analysis.provenance import record_start
from lt_detectron2.analysis.training_figures import log_figures
from lt_detectron2.data.statistics import read_statistics
from lt_detectron2.engine.checkpoint import MATCHING, LongTailCheckpointer
from lt_detectron2.engine.full_disk import explaining_full_disk
from lt_detectron2.engine.launch import launch
from lt_detectron2.engine.own_data import log_own_data
from lt_detectron2.engine.setup import (
    check_config,
    forget_earlier_training,
    keeping_config_of_training,
    load_config,
)
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.errors import DatasetError, UserError


def main(args: argparse.Namespace) -> Any:
    cfg = load_config(args.config_file, args.opts)
    check_config(cfg, args)
    if args.eval_only:
        cfg = with_statistics_of_checkpoint(cfg)
    with explaining_full_disk(cfg.OUTPUT_DIR, trains=not args.eval_only, resumes=args.resume):
        setup(cfg, args)
        if args.eval_only:
            results = evaluate(cfg)
        else:
            trainer = LongTailTrainer(cfg)
            log_figures(trainer)
            trainer.resume_or_load(resume=args.resume)
            results = trainer.train()
        report(cfg)
    return results


def setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Prepare logging, seeds and the output folder."""
    keeps = args.eval_only and comm.is_main_process()
    if comm.is_main_process() and not args.eval_only:
        forget_earlier_training(cfg.OUTPUT_DIR)
    with keeping_config_of_training(cfg.OUTPUT_DIR) if keeps else nullcontext():
        default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="lt_detectron2", abbrev_name="lt")
    if comm.is_main_process():
        record_start(cfg.OUTPUT_DIR, continues=args.resume or args.eval_only)
    log_own_data(cfg)


def evaluate(cfg: CfgNode) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS, or saved predictions, on DATASETS.TEST."""
    if cfg.LONG_TAIL.EVAL.PREDICTIONS:
        results = LongTailTrainer.test_predictions(cfg)
    else:
        model = LongTailTrainer.build_model(cfg)
        checkpointer = LongTailCheckpointer(
            model, cfg.OUTPUT_DIR, allow_pickle=cfg.LONG_TAIL.ALLOW_PICKLE
        )
        checkpointer.strict = True
        checkpointer.load(cfg.MODEL.WEIGHTS)
        results = LongTailTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def report(cfg: CfgNode) -> None:
    """Leave report.md and report.html in OUTPUT_DIR."""
    if cfg.LONG_TAIL.REPORT and comm.is_main_process():
        from lt_detectron2.analysis.run_report import leave_report  # matplotlib, only now

        leave_report(cfg.OUTPUT_DIR)


def with_statistics_of_checkpoint(cfg: CfgNode) -> CfgNode:
    """The config, told to take class counts from the checkpoint if that holds any."""
    if cfg.LONG_TAIL.STATISTICS:
        return cfg
    weights = cfg.MODEL.WEIGHTS.removesuffix(MATCHING)
    try:
        read_statistics(weights)
    except DatasetError:
        return cfg  # a checkpoint of another project; the training set is counted if need be
    cfg = cfg.clone()
    cfg.defrost()
    cfg.LONG_TAIL.STATISTICS = weights
    cfg.freeze()
    return cfg


if __name__ == "__main__":
    arguments = default_argument_parser(epilog=__doc__).parse_args()
    try:
        launch(
            main,
            arguments.num_gpus,
            arguments.num_machines,
            arguments.machine_rank,
            arguments.dist_url,
            args=(arguments,),
        )
    except UserError as error:
        sys.exit(f"error: {error}")
