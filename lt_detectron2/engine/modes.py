"""The mode of a detector, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_test_mode(model: nn.Module) -> Iterator[None]:
    """Within, a model is as for testing; also after an error, it then trains as before."""
    # Not Detectron2's inference_context, which an error leaves in the mode of testing.
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
