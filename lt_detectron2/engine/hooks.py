"""What a trainer does around its steps, beyond Detectron2's hooks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detectron2.engine import HookBase, hooks
from fvcore.common.history_buffer import HistoryBuffer

from .best_checkpoint import BestCheckpoint
from .checkpoint_hook import CheckpointHook
from .validation_loss import ValidationLoss
from .writers import WriteAfterEvaluation

if TYPE_CHECKING:
    from .trainer import LongTailTrainer

KEPT_VALUES = 1000
"""Of each number, the longest window that Detectron2 looks at, for the time that is left."""


class ForgetOldValues(HookBase):
    """Keeps memory flat: Detectron2 keeps a million values of each number, 100 bytes each."""

    def before_train(self) -> None:
        histories = self.trainer.storage.histories()
        histories.default_factory = functools.partial(HistoryBuffer, max_length=KEPT_VALUES)


class Evaluation(hooks.EvalHook):
    """Detectron2's, which would evaluate once more where the last of all steps failed."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._do_eval()
        del self._func  # it holds the trainer, which holds this


def complete_hooks(trainer: LongTailTrainer, stock: Sequence[HookBase | None]) -> list[HookBase]:
    """
    Detectron2's hooks with those that the config asks for; writers come last, to write it all.

    Checkpoints are saved by a hook of our own, and evaluations can be interrupted.

    Args:
        trainer: with its config, model and checkpointer.
        stock: what Detectron2 made for it.
    """
    node = trainer.cfg.LONG_TAIL
    writing = [hook for hook in stock if isinstance(hook, hooks.PeriodicWriter)]
    replaced = (hooks.PeriodicWriter, hooks.PeriodicCheckpointer, hooks.EvalHook)
    completed: list[HookBase | None] = [ForgetOldValues()]
    completed += [hook for hook in stock if not isinstance(hook, replaced)]
    eval_period = trainer.cfg.TEST.EVAL_PERIOD
    completed.append(CheckpointHook(trainer.cfg.SOLVER.CHECKPOINT_PERIOD))
    completed.append(Evaluation(eval_period, trainer.evaluate))
    if node.VALIDATION_LOSS_PERIOD > 0:
        completed.append(ValidationLoss(trainer.cfg, trainer.model))
    if node.BEST_CHECKPOINT:
        completed.append(BestCheckpoint(eval_period, trainer.checkpointer, node.BEST_CHECKPOINT))
    periods = (eval_period, node.VALIDATION_LOSS_PERIOD)
    return completed + [WriteAfterEvaluation(hook, periods) for hook in writing]
