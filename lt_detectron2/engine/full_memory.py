"""A step that finds no memory ends a training with one sentence: what it was given, what helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import FullMemoryError

FULL = "out of memory", "_STATUS_ALLOC_FAILED", "DefaultCPUAllocator"
"""What CUDA, its libraries and torch on a CPU say."""


def is_want_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU, or the memory of the machine, was full."""
    return any(words in str(error) for words in FULL)


def explain_full_memory(
    error: RuntimeError, iteration: int, batch: Sequence[Mapping[str, Any]], cfg: CfgNode
) -> FullMemoryError:
    """
    What a step needed memory for, and the keys that make it need less.

    Args:
        error: torch's.
        iteration: of the step.
        batch: images of this process, as far as the model had got them; not none.
        cfg: of the training.
    """
    # The rest of torch's words is about what is free and what is reserved.
    cause = ". ".join(" ".join(str(error).split()).split(". ")[:2]).rstrip(".")
    return FullMemoryError(
        f"no memory at iteration {iteration} for {_what(batch)} ({cause}): {_remedy(cfg)}"
    )


def _what(batch: Sequence[Mapping[str, Any]]) -> str:
    height, width = max((image["image"].shape[-2:] for image in batch), key=lambda s: s[0] * s[1])
    text = f"a batch of {len(batch)} (in this process), images of up to {height} x {width} pixels"
    objects = max((len(image["instances"]) for image in batch if "instances" in image), default=0)
    return f"{text} with up to {objects} objects"


def _remedy(cfg: CfgNode) -> str:
    images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    parts = cfg.LONG_TAIL.SOLVER.MICRO_BATCHES
    is_cpu = cfg.MODEL.DEVICE == "cpu"  # which has no float16
    in_parts = f"LONG_TAIL.SOLVER.MICRO_BATCHES {min(2 * parts, images)} (a step in parts)"
    remedies = [
        *([] if cfg.SOLVER.AMP.ENABLED or is_cpu else ["SOLVER.AMP.ENABLED True"]),
        *([in_parts] if parts < images else []),
        "smaller images (INPUT.MIN_SIZE_TRAIN, INPUT.MAX_SIZE_TRAIN)",
    ]
    return "try " + ", or ".join(remedies) + "; go on from the last checkpoint with --resume"
