"""When a training saves: as often as configured, at its end, and when it is asked to stop."""

from __future__ import annotations

import logging
import os

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..errors import CheckpointError
from .stop import StopRequested

logger = logging.getLogger(__name__)

FINAL = "model_final"


class CheckpointHook(HookBase):
    """
    Saves in all processes together, for each has a state of its own.

    A periodic checkpoint that cannot be written, as on a full disk, is reported and costs nothing
    else. One that nothing comes after ends the run with an error. A run that was killed between its
    last step and the final checkpoint writes that when it is resumed.

    Args:
        period: iterations between checkpoints.
    """

    def __init__(self, period: int):
        self.period = period

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter < trainer.max_iter or trainer.start_iter == 0:
            return
        is_there = os.path.isfile(os.path.join(trainer.cfg.OUTPUT_DIR, f"{FINAL}.pth"))
        if not comm.all_gather(is_there)[0]:
            trainer.iter = trainer.start_iter - 1  # the last that was done
            trainer.save(FINAL)
            trainer.iter = trainer.start_iter

    def after_step(self) -> None:
        trainer = self.trainer
        number = trainer.iter + 1
        signal = trainer.stop.agreed()
        if signal:
            trainer.save(f"model_{trainer.iter:07d}")
        elif number % self.period == 0:
            self._try_to_save(f"model_{trainer.iter:07d}")
        if number >= trainer.max_iter:
            trainer.save(FINAL)
        if signal:
            comm.synchronize()  # nobody leaves before the checkpoint is written
            raise StopRequested(signal)

    def _try_to_save(self, name: str) -> None:
        try:
            self.trainer.save(name)
        except CheckpointError as error:
            logger.error(
                "%s\nTraining goes on; the next attempt is after %d iterations.", error, self.period
            )
