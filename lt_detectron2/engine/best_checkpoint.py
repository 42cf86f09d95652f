"""The checkpoint of the best evaluation, also of a training that was interrupted."""

from __future__ import annotations

import copy
import json
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks
from detectron2.utils import comm

from ..errors import CheckpointError, reason
from ..files import replacing

logger = logging.getLogger(__name__)

FILE_PREFIX = "model_best"
RECORD_FILE = "model_best.json"


class BestCheckpoint(hooks.BestCheckpointer):
    """
    Keeps ``model_best.pth``, of the evaluation with the highest metric.

    Beyond Detectron2's hook: a training that resumes knows what the best has been, from
    ``model_best.json``; and it resumes from its last checkpoint, not from its best. A file that
    cannot be written, as on a full disk, is reported and costs nothing else.

    Args:
        eval_period: iterations between evaluations, ``TEST.EVAL_PERIOD``.
        checkpointer: of the training.
        metric: "bbox/AP", "bbox/APr", ...; without a task, boxes are meant.
    """

    def __init__(self, eval_period: int, checkpointer: DetectionCheckpointer, metric: str):
        metric = metric if "/" in metric else f"bbox/{metric}"
        super().__init__(eval_period, _not_last(checkpointer), metric, file_prefix=FILE_PREFIX)
        self._record = os.path.join(checkpointer.save_dir, RECORD_FILE)

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            if comm.is_main_process():  # that of an earlier training in this folder
                Path(self._record).unlink(missing_ok=True)
            return
        kept = (self._record, os.path.join(self._checkpointer.save_dir, f"{FILE_PREFIX}.pth"))
        if not all(map(os.path.isfile, kept)):
            return
        try:
            record = json.loads(Path(self._record).read_bytes())
            metric, value, iteration = record["metric"], float(record["value"]), record["iteration"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning(
                "%s cannot be read (%s): the next evaluation counts as the best so far",
                *(self._record, reason(error)),
            )
            return
        if metric != self._val_metric:
            logger.info("%s is of another metric and begins anew", RECORD_FILE)
            return
        self.best_metric, self.best_iter = value, iteration

    def _best_checking(self) -> None:
        before = self.best_metric, self.best_iter
        try:
            super()._best_checking()
            if self.best_iter != before[1] and comm.is_main_process():
                self._write_record()
        except (CheckpointError, OSError) as error:
            self.best_metric, self.best_iter = before
            logger.error("%s\nTraining goes on; the next better evaluation is tried again", error)

    def _write_record(self) -> None:
        names = ("metric", "value", "iteration")
        record = dict(zip(names, (self._val_metric, self.best_metric, self.best_iter)))
        with replacing(self._record, durable=True) as file:
            json.dump(record, file)


def _not_last(checkpointer: DetectionCheckpointer) -> Any:
    """The same checkpointer, whose files are not those that a training resumes from."""
    other = copy.copy(checkpointer)
    other.tag_last_checkpoint = lambda name: None
    return other
