"""Steps of a training beyond Detectron2's plain one: in micro-batches, in mixed precision."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class StepTrainer(SimpleTrainer):
    """
    SimpleTrainer that can pass a batch in parts, and compute in half precision.

    The gradient of a step is the mean over images of its micro-batches, as it would be over as many
    processes: parts have regions and normalisation statistics of their own, and the optimizer,
    schedule and logs see one step. A state changes once a micro-batch, which already sees what
    those before it left; processes at the same time do not. Counts and sums over regions take each
    region once. Other states differ: with n micro-batches EquilibriumLoss (without object ids),
    CausalClassifier and the normaliser of RetinaNet forget up to n times a step,
    SoftmaxEqualizationLossV2 and EqualizedFocalLoss gather the gradients of n means, and LDAMLoss
    counts n steps.

    Args:
        model, data_loader, optimizer: as SimpleTrainer.
        micro_batches: parts of a batch, one after the other; less memory for the same step.
        precision: type of autocast, or None for none. float16 scales gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Sequence[Any]],
        optimizer: torch.optim.Optimizer,
        *,
        micro_batches: int = 1,
        precision: torch.dtype | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.micro_batches = micro_batches
        self.precision = precision
        self.device_type = next(model.parameters()).device.type
        is_scaled = precision == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=is_scaled)

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        parts = split_batch(batch, self.micro_batches)
        logged: dict[str, Tensor] = defaultdict(float)
        self.optimizer.zero_grad()
        for index, part in enumerate(parts):
            share = len(part) / len(batch)
            with self._reducing(index == len(parts) - 1):
                losses = self._losses(part)
                self.grad_scaler.scale(share * sum(losses.values())).backward()
            for name, value in losses.items():
                logged[name] += share * value.detach()
        self._write_metrics(logged, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _losses(self, part: Sequence[Any]) -> dict[str, Tensor]:
        enabled = self.precision is not None
        with torch.autocast(self.device_type, dtype=self.precision, enabled=enabled):
            return self.model(part)

    def _reducing(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Processes add their gradients up once a step."""
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state.get("grad_scaler"):  # what was trained in another precision has no scale
            self.grad_scaler.load_state_dict(state["grad_scaler"])


def split_batch(batch: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """The images in order, in parts of sizes that differ by one at most; none is empty."""
    bounds = [len(batch) * index // parts for index in range(parts + 1)]
    return [batch[a:b] for a, b in zip(bounds, bounds[1:]) if b > a]


def build_step_trainer(
    cfg: CfgNode,
    model: nn.Module,
    data_loader: Iterable[Sequence[Any]],
    optimizer: torch.optim.Optimizer,
    images_per_process: int,
) -> SimpleTrainer:
    """
    What runs the steps of this config; Detectron2's SimpleTrainer if they are plain ones.

    Raises:
        ConfigError: a batch does not make so many parts, or the precision is not to be had.
    """
    node = cfg.LONG_TAIL.SOLVER
    if not 1 <= node.MICRO_BATCHES <= images_per_process:
        raise ConfigError(
            f"LONG_TAIL.SOLVER.MICRO_BATCHES is {node.MICRO_BATCHES}, and a process has "
            f"{images_per_process} images in a step: expected 1 to {images_per_process}"
        )
    if node.AMP_DTYPE not in PRECISIONS:
        raise ConfigError(
            f"LONG_TAIL.SOLVER.AMP_DTYPE is {node.AMP_DTYPE!r}, expected one of: "
            f"{', '.join(PRECISIONS)}"
        )
    precision = PRECISIONS[node.AMP_DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    if precision == torch.float16 and not next(model.parameters()).is_cuda:
        raise ConfigError(
            "SOLVER.AMP.ENABLED computes in float16, which needs a GPU: set "
            "LONG_TAIL.SOLVER.AMP_DTYPE bfloat16, or SOLVER.AMP.ENABLED False"
        )
    if precision is None and node.MICRO_BATCHES == 1:
        return SimpleTrainer(model, data_loader, optimizer)
    return StepTrainer(
        model, data_loader, optimizer, micro_batches=node.MICRO_BATCHES, precision=precision
    )
