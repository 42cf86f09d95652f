"""What a trainer does around its steps, beyond Detectron2's hooks."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.engine import DefaultTrainer, HookBase, hooks

from .best_checkpoint import BestCheckpoint
from .validation_loss import ValidationLoss
from .writers import WriteAfterEvaluation


def complete_hooks(trainer: DefaultTrainer, stock: Sequence[HookBase | None]) -> list[HookBase]:
    """
    Detectron2's hooks with those that the config asks for; writers come last, to write it all.

    Args:
        trainer: with its config, model and checkpointer.
        stock: what Detectron2 made for it.
    """
    node = trainer.cfg.LONG_TAIL
    writing = [hook for hook in stock if isinstance(hook, hooks.PeriodicWriter)]
    completed = [hook for hook in stock if hook not in writing]
    eval_period = trainer.cfg.TEST.EVAL_PERIOD
    if node.VALIDATION_LOSS_PERIOD > 0:
        completed.append(ValidationLoss(trainer.cfg, trainer.model))
    if node.BEST_CHECKPOINT:
        completed.append(BestCheckpoint(eval_period, trainer.checkpointer, node.BEST_CHECKPOINT))
    periods = (eval_period, node.VALIDATION_LOSS_PERIOD)
    return completed + [WriteAfterEvaluation(hook, periods) for hook in writing]
