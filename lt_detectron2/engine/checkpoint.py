"""Checkpoints that carry the class statistics, and that say what they did not contain."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..errors import CheckpointError, ConfigError
from ..modeling.freeze import select
from ..statistics import ClassStatistics
from .safe_loading import load_checkpoint_file

logger = logging.getLogger(__name__)


class StatisticsRecord:
    """Puts class statistics into a checkpoint, and compares them with those of one resumed from."""

    def __init__(self, statistics: ClassStatistics):
        self.statistics = statistics

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = ClassStatistics.from_state_dict(state)
        if saved.fingerprint() != self.statistics.fingerprint():
            logger.warning(
                "The checkpoint was trained on other class counts (%d objects) than the training "
                "set has now (%d objects): the run goes on with the new ones. Did the annotations "
                "change?",
                int(saved.instance_count.sum()),
                int(self.statistics.instance_count.sum()),
            )


class LongTailCheckpointer(DetectionCheckpointer):
    """
    Detectron2's checkpointer, strict where a silent mismatch would waste a run.

    Args:
        reinit: names and patterns of what is not taken from a checkpoint, but for resuming;
            see :func:`~lt_detectron2.modeling.freeze.select`.
        allow_pickle: read files that may run any program; see `safe_loading`.

    Attributes:
        strict: raise if the model has a parameter that the checkpoint lacks or has in another
            shape. For evaluation and for resuming; a training may start from a backbone only.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        reinit: Sequence[str] = (),
        allow_pickle: bool = False,
        **kwargs: Any,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.reinit = tuple(reinit)
        self.allow_pickle = allow_pickle
        self.strict = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        self.strict = resume and self.has_checkpoint()
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """
        Load ``path``; an empty path loads nothing.

        Raises:
            CheckpointError: no such file, or it cannot be fetched; or ``strict``, and the
                checkpoint does not fit the model.
        """
        # Handlers of addresses cannot say whether there is a file: Detectron2's raises.
        if "://" in path:
            self._fetch(path)
        elif path and not self.path_manager.isfile(path):
            raise CheckpointError(
                f"no checkpoint at {path!r}: check MODEL.WEIGHTS (empty starts from scratch)"
            )
        return super().load(path, *args, **kwargs)

    def _fetch(self, address: str) -> None:
        """Get the file of an address into the cache, which loading then takes it from."""
        try:
            self.path_manager.get_local_path(address)
        except OSError as error:
            raise CheckpointError(
                f"{address!r} cannot be fetched ({error}): get the file on a machine with access "
                "to it and set MODEL.WEIGHTS to its path, or to '' to start from scratch"
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = load_checkpoint_file(filename, allow_pickle=self.allow_pickle)
        if filename.endswith(".pkl") and not ("model" in content and "__author__" in content):
            blobs = content.get("blobs", content)  # of Caffe2, detectors and backbones
            weights = {name: v for name, v in blobs.items() if not name.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".pyth"):  # of pycls
            weights = content.get("model_state", content)
            weights = {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        return content if "model" in content else {"model": content}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self.reinit and not self.strict:
            self._leave_out(checkpoint)
        parameters = {name for name, _ in self._unwrapped().named_parameters()}
        lacking = set()
        if not checkpoint.get("matching_heuristics", False):
            # Not only what stays missing: a module may fill a gap from other weights (SimCal does).
            lacking = parameters - {name.removeprefix("module.") for name in checkpoint["model"]}
        try:
            incompatible = super()._load_model(checkpoint)
        except ValueError as error:  # a loss refuses state that means something else to it
            raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error
        reshaped = [
            f"{name} is {tuple(found)} in the checkpoint and {tuple(expected)} in the model"
            for name, found, expected in incompatible.incorrect_shapes
        ]
        reshaped_names = {name for name, *_ in incompatible.incorrect_shapes}
        missing = sorted((lacking | parameters & set(incompatible.missing_keys)) - reshaped_names)
        if self.strict and (reshaped or missing):
            lines = reshaped + [f"{name} is not in the checkpoint" for name in missing]
            shown = "\n  ".join(lines[:12] + (["..."] if len(lines) > 12 else []))
            raise CheckpointError(
                f"the checkpoint does not fit the model:\n  {shown}\n"
                "Use the config it was trained with (config.yaml beside it): another loss, number "
                "of classes or head has other weights."
            )
        if reshaped:
            logger.warning(
                "These start afresh, everything else is taken from the checkpoint:\n  %s",
                "\n  ".join(reshaped),
            )
        return incompatible

    def _leave_out(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("matching_heuristics", False):
            raise ConfigError(
                "LONG_TAIL.REINIT names parts of a detector, and MODEL.WEIGHTS is a backbone in "
                "another project's format: all else starts afresh anyway, so leave REINIT empty"
            )
        state = checkpoint["model"]
        names = select("LONG_TAIL.REINIT", self.reinit, self._unwrapped().state_dict())
        found = [name for name in names if state.pop(name, None) is not None]
        logger.info("LONG_TAIL.REINIT: these start afresh:\n  %s", "\n  ".join(found))

    def _unwrapped(self) -> torch.nn.Module:
        return getattr(self.model, "module", self.model)
