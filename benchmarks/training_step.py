"""
Iterations of a whole detector with each loss, against the softmax baseline.

    python -m benchmarks.training_step             # every loss on the SynthLT demo model
    python -m benchmarks.training_step --case EqualizationLossV2

Two detectors that differ in their loss train in turns, in one process and on the same batches:
forward, backward and the optimizer's step, with the logs that a training writes; loading is left
out. On a CPU it is the demo model (60 classes, 8 images of 128 pixels), on a GPU a Mask R-CNN
R50-FPN with 1,203 classes and 2 images of 800 x 1,088 pixels.

A ratio of 1.05 is an iteration that takes 5 % longer; that is the bound on a CPU, and 1.02 on a
GPU. GAP loss is added to a softmax. "channels_last" is the softmax model in that memory format, and
"compiled" has a backbone compiled by torch.compile: the only ones whose total loss is to be the
baseline's.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from benchmarks.harness import REPOSITORY, Case, Contest, Target, main
from lt_detectron2 import losses
from lt_detectron2.data.statistics import write_statistics
from lt_detectron2.engine.gradient_clipping import build_clipped_optimizer
from lt_detectron2.engine.setup import load_config
from lt_detectron2.modeling.classification_loss import loss_classes
from lt_detectron2.statistics import ClassStatistics

ON_GPU = torch.cuda.is_available()
AT_MOST = 1.02 if ON_GPU else 1.05
TOLERANCE = 1e-2
"""Of the first total loss; rounding decides which proposals are sampled."""
STEPS = 8 if ON_GPU else 1
"""Iterations in a turn."""
BATCHES = 3
BASELINE = "SoftmaxCrossEntropyLoss"
SHORT = ("EqualizationLossV2", "FBSAEGLoss", "GAPLoss", "GroupSoftmaxLoss", "SeesawLoss")
"""Losses of the short form: with state, with draws, of ranks, of groups, of shifted logits."""

CPU_MODEL = {
    "config": "configs/SynthLT/Base-demo.yaml",
    **{"classes": 60, "images": 8, "height": 128, "width": 128, "objects": 6},
}
GPU_MODEL = {
    "config": "configs/LVISv1-InstanceSegmentation/Base-LVISv1-Mask-RCNN-FPN-1x.yaml",
    **{"classes": 1203, "images": 2, "height": 800, "width": 1088, "objects": 12},
}
MODEL = GPU_MODEL if ON_GPU else CPU_MODEL

VARIANTS: dict[str, Callable[[nn.Module], object]] = {
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "compiled": lambda model: model.backbone.compile(),
}
"""Of the baseline: what changes a model in place, but not what it computes."""

FOLDER = tempfile.TemporaryDirectory()
"""For files that last as long as the process."""


def set_up(
    method: str, config: str, classes: int, images: int, height: int, width: int, objects: int
) -> Contest:
    """
    Args:
        method: a loss, or a ranking loss that is added to the baseline, or one of VARIANTS.
        config: of the model.
        classes: K.
        images, height, width, objects: of a batch; objects of each image.
    """
    batches = [batch(seed, classes, images, height, width, objects) for seed in range(BATCHES)]
    contestants = {
        name: trainer(make_config(name, config, classes), batches, VARIANTS.get(name))
        for name in (method, BASELINE)
    }

    def check() -> float | None:
        totals, expected = (contestants[name]() for name in (method, BASELINE))
        assert all(map(math.isfinite, totals + expected)), f"losses {totals}, {expected}"
        if method not in VARIANTS:
            return None
        error = abs(totals[0] - expected[0]) / abs(expected[0])
        assert error <= TOLERANCE, f"a loss of {totals[0]:g} instead of {expected[0]:g}"
        return error

    return Contest(contestants, check, unit_bytes=4 * images * 512 * classes)


def trainer(
    cfg: CfgNode, batches: list[list[dict]], change: Callable[[nn.Module], object] | None = None
) -> Callable[[], list[float]]:
    """A function that trains for a turn and returns its losses."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    if change:
        change(model)
    optimizer = build_clipped_optimizer(cfg, model)
    storage = EventStorage()
    done = 0

    def turn() -> list[float]:
        nonlocal done
        totals = []
        with storage:
            for _ in range(STEPS):
                torch.manual_seed(done)  # the same regions are sampled for both
                total: Tensor = sum(model(batches[done % len(batches)]).values())
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                storage.step()
                done += 1
                totals.append(total.detach())
        return torch.stack(totals).tolist()

    return turn


def make_config(method: str, config: str, classes: int) -> CfgNode:
    """The model's config with a loss, and made-up counts of a long tail."""
    count = (20_000 * torch.arange(1, classes + 1) ** -1.2).long().clamp(min=1)
    statistics = ClassStatistics(count, (0.7 * count).long().clamp(min=1), num_images=20_000)
    path = Path(FOLDER.name) / f"{classes}.json"
    write_statistics(statistics, path)
    key = "LOSS" if method in loss_classes() else "RANKING"
    chosen = [] if method in VARIANTS else [f"LONG_TAIL.{key}.NAME", method]
    return load_config(
        str(REPOSITORY / config),
        ["MODEL.ROI_HEADS.NAME", "LongTailROIHeads", *chosen]
        + ["LONG_TAIL.LOSS.IMPLEMENTATION", "auto"]  # the Triton kernels on a GPU
        + ["MODEL.ROI_HEADS.NUM_CLASSES", str(classes), "LONG_TAIL.STATISTICS", str(path)]
        + ["MODEL.WEIGHTS", "", "SOLVER.BASE_LR", "0.0001", "INPUT.MASK_FORMAT", "bitmask"],
    )


def batch(
    seed: int, classes: int, images: int, height: int, width: int, objects: int
) -> list[dict]:
    """Noise with boxes, each with an ellipse for a mask."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    y, x = torch.arange(height)[:, None], torch.arange(width)
    made = []
    for _ in range(images):
        sides = size * (0.1 + 0.3 * torch.rand(objects, 2, generator=generator))
        corners = torch.rand(objects, 2, generator=generator) * (size - sides)
        centres = corners + sides / 2
        masks = torch.stack(
            [
                ((x - c[0]) / s[0]) ** 2 + ((y - c[1]) / s[1]) ** 2 <= 0.25
                for c, s in zip(centres, sides)
            ]
        )
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
        instances.gt_classes = torch.randint(0, classes, (objects,), generator=generator)
        instances.gt_masks = BitMasks(masks)
        pixels = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        made.append({"image": pixels, "instances": instances, "height": height, "width": width})
    return made


def targets(case: Case) -> list[Target]:
    """No loss is to slow an iteration down."""
    is_variant = case.sizes["method"] in VARIANTS
    return [] if is_variant else [Target(BASELINE, at_most=AT_MOST)]


def is_short(case: Case) -> bool:
    """Cases of the short form."""
    return case.sizes["method"] in SHORT


METHODS = [name for name in losses.__all__ if name in loss_classes() and name != BASELINE]
METHODS += ["GAPLoss", *VARIANTS]
CASES = [Case(f"{method}, whole model", set_up, {"method": method, **MODEL}) for method in METHODS]

if __name__ == "__main__":
    sys.exit(main("training_step", CASES, targets, is_short=is_short))
