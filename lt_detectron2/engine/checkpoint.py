"""Checkpoints that are whole, carry the class statistics, and say what they did not contain."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..errors import CheckpointError, ConfigError
from ..files import PART_SUFFIX, replacing
from ..modeling.freeze import select
from ..statistics import ClassStatistics
from .non_finite import not_finite
from .safe_loading import load_checkpoint_file

logger = logging.getLogger(__name__)

LAST_FILE = "last_checkpoint"
"""Detectron2's: the name of the newest checkpoint."""

HISTORY_FILE = "checkpoint_history"
"""The names of all checkpoints of this training, oldest first."""

MATCHING = "?matching_heuristics=True"
"""Detectron2's end of MODEL.WEIGHTS for files whose names lack the first parts of the model's."""


def what_is_kept(folder: str) -> str:
    """For the message of what fails: the newest checkpoint of a folder, if there is any."""
    try:
        with open(os.path.join(folder, LAST_FILE), encoding="utf-8") as file:
            return f"{os.path.join(folder, file.read().strip())} is kept"
    except OSError:
        return "there is no earlier checkpoint"


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

    A file takes its name when the disk has all of it, and is checked before a training resumes from
    it: if it is damaged all the same, the one before is taken.

    Args:
        reinit: names and patterns of what is not taken from a checkpoint, but for resuming;
            see :func:`~lt_detectron2.modeling.freeze.select`.
        allow_pickle: read files that may run any program; see `safe_loading`.
        needs_frozen: raise if a parameter that is not trained is not in the checkpoint, or in
            another shape: for trainings of a part, LONG_TAIL.TRAINABLE, of which the rest would
            stay random.

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
        needs_frozen: bool = False,
        **kwargs: Any,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.needs_frozen = needs_frozen
        self.reinit = tuple(reinit)
        self.allow_pickle = allow_pickle
        self.strict = False
        self._matches_names = False
        self._history: list[str] = []

    def save(self, name: str, **kwargs: Any) -> None:
        """
        Save what ``kwargs`` holds with the model and all checkpointables as ``<name>.pth``.

        Raises:
            CheckpointError: it cannot be written, as when the disk is full. What was there stays.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if "://" in self.save_dir:  # storage with rules of its own
            return super().save(name, **kwargs)
        content = {"model": self.model.state_dict()}
        content |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        file_name = f"{name}.pth"
        path = os.path.join(self.save_dir, file_name)
        logger.info("Saving checkpoint to %s", path)
        try:
            with replacing(path, "wb", durable=True) as file:
                torch.save(content | kwargs, file)
            self.tag_last_checkpoint(file_name)
        except (OSError, RuntimeError) as error:
            # torch reports what its file said as an error of its own.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise CheckpointError(self._cannot_write(path, cause)) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        history = [name for name in self._history if name != last_filename_basename]
        self._history = [*history, last_filename_basename]
        with replacing(os.path.join(self.save_dir, HISTORY_FILE), durable=True) as file:
            file.write("\n".join(self._history) + "\n")
        with replacing(os.path.join(self.save_dir, LAST_FILE), durable=True) as file:
            file.write(last_filename_basename)

    def _cannot_write(self, path: str, error: OSError) -> str:
        return (
            f"checkpoint {path} could not be written ({error.strerror}), and "
            f"{what_is_kept(self.save_dir)}: make sure that OUTPUT_DIR has space and can be written"
        )

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """
        Resume from the newest checkpoint that is whole, if there is any; else load ``path``.

        Raises:
            CheckpointError: none is whole; or see :meth:`load`.
        """
        self._remove_parts()
        self.strict = resume and self.has_checkpoint()
        if not self.strict:
            if self.has_checkpoint():
                logger.warning(
                    "%s holds checkpoints of an earlier training, which new ones replace: to go on "
                    "with that one, stop this and add --resume",
                    self.save_dir,
                )
            return super().resume_or_load(path, resume=resume)
        found = comm.all_gather(self._newest_whole() if comm.is_main_process() else None)[0]
        if isinstance(found, CheckpointError):
            raise found
        return self.load(found)

    def _newest_whole(self) -> str | CheckpointError:
        """The file to resume from, which ends the history; or why there is none."""
        last = os.path.basename(self.get_checkpoint_file())
        names = self._read_history()
        names = names[: names.index(last) + 1] if last in names else [last]
        problems = []
        while names:
            path = os.path.join(self.save_dir, names[-1])
            problem = _damage(path)
            if problem is None:
                self._history = names
                if problems:
                    logger.warning("Resuming from %s, because %s", path, "; ".join(problems))
                return path
            problems.append(f"{path} {problem}")
            names.pop()
        return CheckpointError(
            f"cannot resume: {'; '.join(problems)}: write the name of another checkpoint to "
            f"{os.path.join(self.save_dir, LAST_FILE)}, or start anew without --resume"
        )

    def _read_history(self) -> list[str]:
        try:
            with open(os.path.join(self.save_dir, HISTORY_FILE), encoding="utf-8") as file:
                return file.read().split()
        except OSError:
            return []

    def _remove_parts(self) -> None:
        """Remove what an earlier run did not live to write completely."""
        if not self.save_dir or not self.save_to_disk:
            return
        pattern = os.path.join(glob.escape(self.save_dir), f"*.[0-9]*{PART_SUFFIX}")
        for path in glob.glob(pattern):
            with contextlib.suppress(OSError):
                os.remove(path)
                logger.info("Removed %s, which was not complete", path)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """
        Load ``path``; an empty path loads nothing.

        At its end may stand :data:`MATCHING`, which is taken off here: Detectron2's 0.6 does not
        know it, and what its main branch notes of it is for a ``_load_file`` of its own.

        Raises:
            CheckpointError: no such file, or it cannot be fetched; or its weights are no numbers;
                or ``strict``, and the checkpoint does not fit the model.
        """
        self._matches_names = path.endswith(MATCHING)
        path = path.removesuffix(MATCHING)
        # Handlers of addresses cannot say whether there is a file: Detectron2's raises.
        if "://" in path:
            self._fetch(path)
        elif path:
            check_weights(path)
        rest = super().load(path, *args, **kwargs)
        broken = not_finite(self._unwrapped().named_parameters())
        if path and broken:
            raise CheckpointError(
                f"{path}: {len(broken)} parameters have values that are infinite or no numbers "
                f"({broken[0]}), the training had diverged: take an earlier checkpoint as "
                "MODEL.WEIGHTS; a training begins anew from it, with a lower SOLVER.BASE_LR and "
                "without --resume, which would keep the learning rate"
            )
        return rest

    def _fetch(self, address: str) -> None:
        """Get the file of an address into the cache, which loading then takes it from."""
        try:
            self.path_manager.get_local_path(address)
        except OSError as error:
            end = f" with {MATCHING} behind it" if self._matches_names else ""
            raise CheckpointError(
                f"{address!r} cannot be fetched ({error}): get the file on a machine with access "
                f"to it and set MODEL.WEIGHTS to its path{end}, or to '' to start from scratch"
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
        content = content if "model" in content else {"model": content}
        return content | {"matching_heuristics": True} if self._matches_names else content

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
        if self.needs_frozen:
            self._check_frozen(reshaped_names | set(incompatible.missing_keys))
        if reshaped:
            logger.warning(
                "These start afresh, everything else is taken from the checkpoint:\n  %s",
                "\n  ".join(reshaped),
            )
        return incompatible

    def _check_frozen(self, not_loaded: set[str]) -> None:
        frozen = {n for n, p in self._unwrapped().named_parameters() if not p.requires_grad}
        if self.reinit:
            frozen -= set(select("LONG_TAIL.REINIT", self.reinit, self._unwrapped().state_dict()))
        random = sorted(frozen & not_loaded)
        if random:
            shown = ", ".join(random[:3]) + (", ..." if len(random) > 3 else "")
            raise CheckpointError(
                f"LONG_TAIL.TRAINABLE freezes {len(random)} parameters that the checkpoint lacks "
                f"or has in another shape, so that they would stay random ({shown}): build on the "
                "config that MODEL.WEIGHTS was trained with (_BASE_, or `recommend --base`)"
            )

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


def check_weights(path: str) -> None:
    """Raise CheckpointError if there is no such file; what has to be fetched is not looked for."""
    if "://" not in path and not PathManager.isfile(path.removesuffix(MATCHING)):
        raise CheckpointError(
            f"no checkpoint at {path!r}: check MODEL.WEIGHTS (empty starts from scratch)"
        )


def _damage(path: str) -> str | None:
    """What is wrong with a checkpoint file, read in full; None if nothing is."""
    if "://" in path:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
    except FileNotFoundError:
        return "is missing"
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError) as error:
        return f"is incomplete ({error})"
    return None if torn is None else f"is damaged (at {torn})"
