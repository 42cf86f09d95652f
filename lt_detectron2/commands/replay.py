"""
Run a step again whose loss became infinite or no number.

    lt-detectron2 replay output/non_finite/iteration_0001234.pth

A training writes this file before it ends: the batch, the weights before the step, the state of
the random numbers and the config. Shown are the loss terms of the batch and of each image alone.
State of a loss is that after the step.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="iteration_*.pth in OUTPUT_DIR/non_finite")
    parser.add_argument("--device", default="", help="cpu or cuda; by default that of the training")


def run(arguments: argparse.Namespace) -> int:
    from ..engine.blame import build_model_or_blame
    from ..engine.non_finite import decode, losses_by_image, precision_of, run_step
    from ..engine.safe_loading import load_checkpoint_file
    from ..engine.setup import WITHOUT_DATA, load_config
    from ..errors import CheckpointError

    if not Path(arguments.file).is_file():
        raise CheckpointError(
            f"no file {arguments.file!r}: give iteration_*.pth of OUTPUT_DIR/non_finite"
        )
    saved = load_checkpoint_file(arguments.file)
    if not {"batch", "random", "config"} <= saved.keys():
        raise CheckpointError(
            f"{arguments.file} is no saved step, it has {sorted(saved)}: give a file of "
            "OUTPUT_DIR/non_finite"
        )
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(saved["config"], encoding="utf-8")
        overrides = [*WITHOUT_DATA, "LONG_TAIL.STATISTICS", arguments.file, "MODEL.WEIGHTS", ""]
        if arguments.device:
            overrides += ["MODEL.DEVICE", arguments.device]
        cfg = load_config(str(config), overrides)
    model = build_model_or_blame(cfg)
    model.load_state_dict(saved["model"])
    model.train()
    batch = [decode(image) for image in saved["batch"]]
    precision = precision_of(cfg)
    print(f"iteration {saved['iteration']}: {_shown(saved['terms'])}")
    print(f"replayed: {_shown(run_step(model, batch, saved['random'], precision))}")
    each = losses_by_image(model, batch, saved["random"], precision)
    for image, losses in zip(saved["images"], each):
        print(f"image {image['image_id']!r} ({', '.join(image['classes'])}): {_shown(losses)}")
    return 0


def _shown(terms: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.6g}" + ("" if math.isfinite(value) else " <--")
        for name, value in terms.items()
    )
