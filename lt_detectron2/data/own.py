"""What a config says about one's own annotations: the node LONG_TAIL.DATA."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """
    The config node `LONG_TAIL.DATA` is made from these names and defaults.

    Where `train` or `val` is given, they become DATASETS.TRAIN and DATASETS.TEST, and what nobody
    has set, neither a config file nor the command line, is chosen for them: the number of classes,
    the schedule, and at test time the score threshold and the detections of an image.

    Args:
        train: annotations to train on, in COCO or LVIS format; the format is found out.
        train_images: the folder that file names are relative to; that of the annotations if empty.
        val: annotations to evaluate on. If empty, a part of `train` is kept for that.
        val_images: as `train_images`.
        val_share: of each class's images that is kept if there is no `val`; 0 keeps nothing.
        split_seed: of the choice of those images.
        epochs: length of the training; decides SOLVER.MAX_ITER.
        min_iterations: no training is shorter, in batches of SOLVER.IMS_PER_BATCH images.
    """

    train: str = ""
    train_images: str = ""
    val: str = ""
    val_images: str = ""
    val_share: float = 0.2
    split_seed: int = 0
    epochs: float = 24.0
    min_iterations: int = 2000

    def __post_init__(self):
        if not 0 <= self.val_share < 1:
            raise ValueError(
                f"val_share expects a number in [0, 1), got {self.val_share}: 0.2 keeps a fifth"
            )
        if self.split_seed < 0:
            raise ValueError(f"split_seed expects 0 or more, got {self.split_seed}")
        if self.epochs <= 0 or self.min_iterations < 1:
            raise ValueError(
                "expected epochs > 0 and min_iterations >= 1, got "
                f"{self.epochs} and {self.min_iterations}"
            )
