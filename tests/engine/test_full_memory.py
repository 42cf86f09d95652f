"""A step that finds no memory: what the error says, and that it helps."""

import pytest
import torch
from detectron2.engine import DefaultTrainer

from lt_detectron2.engine.full_memory import explain_full_memory, is_want_of_memory
from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.errors import FullMemoryError
from tests.engine.toy_training import config

OF_GPU = torch.cuda.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8.00 GiB of "
    "which 1.00 GiB is free."
)
IMAGE = {"image": torch.zeros(3, 5, 7)}


def explanation(*overrides):
    overrides = ["SOLVER.IMS_PER_BATCH", "8", "MODEL.DEVICE", "cuda", *overrides]
    cfg = load_config("configs/SynthLT/softmax_smoke.yaml", overrides)
    return str(explain_full_memory(OF_GPU, 7, [IMAGE], cfg))


def test_training_says_what_was_too_much(tmp_path, monkeypatch):
    """The error has the step, its images and objects, and the keys that make it need less."""
    trainer = LongTailTrainer(config(tmp_path / "run", tmp_path, "SOLVER.MAX_ITER", "3"))
    forward = trainer.model.forward

    def full(batch):
        if trainer.iter == 1:
            raise OF_GPU
        return forward(batch)

    monkeypatch.setattr(trainer.model, "forward", full)
    with pytest.raises(FullMemoryError) as raised:
        trainer.train()
    batch = trainer._last_step.batch
    height, width = max((image["image"].shape[1:] for image in batch), key=lambda s: s[0] * s[1])
    objects = max(len(image["instances"]) for image in batch)
    assert str(raised.value).startswith(
        f"no memory at iteration 1 for a batch of {len(batch)} (in this process), images of up to "
        f"{height} x {width} pixels with up to {objects} objects "
        "(CUDA out of memory. Tried to allocate 2.50 GiB): try LONG_TAIL.SOLVER.MICRO_BATCHES "
    )
    assert raised.value.__cause__ is OF_GPU


def test_only_what_is_not_in_use_is_advised():
    assert "SOLVER.AMP.ENABLED True" in explanation()
    assert "SOLVER.AMP.ENABLED" not in explanation("SOLVER.AMP.ENABLED", "True")
    assert "SOLVER.AMP.ENABLED" not in explanation("MODEL.DEVICE", "cpu")
    assert "MICRO_BATCHES 2 " in explanation()
    assert "MICRO_BATCHES 8 " in explanation("LONG_TAIL.SOLVER.MICRO_BATCHES", "5")
    assert "MICRO_BATCHES" not in explanation("LONG_TAIL.SOLVER.MICRO_BATCHES", "8")


def test_images_without_objects():
    assert "images of up to 5 x 7 pixels with up to 0 objects" in explanation()


def test_what_workers_lack_is_not_explained_by_the_batch(tmp_path, monkeypatch):
    trainer = LongTailTrainer(config(tmp_path / "run", tmp_path, "SOLVER.MAX_ITER", "3"))

    def full(*_):
        raise RuntimeError("Caught RuntimeError in DataLoader worker: DefaultCPUAllocator: no")

    monkeypatch.setattr(DefaultTrainer, "run_step", full)  # before the model has got anything
    with pytest.raises(RuntimeError, match="^Caught RuntimeError") as raised:
        trainer.train()
    assert not isinstance(raised.value, FullMemoryError)


def test_what_is_want_of_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    of_libraries = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    assert all(map(is_want_of_memory, (raised.value, OF_GPU, of_libraries)))
    assert not is_want_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
