"""From a config to the training loader: records, mapper and sampler."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import Sampler

from ..errors import ConfigError
from . import samplers
from .episodes import LabelledEpisodes, LabelledRecords, MarkSampledObjects
from .image_classes import ImageClasses
from .images import build_mapper
from .loader import TrainingLoader
from .record_store import SharedRecords
from .repeat_factors import auto_threshold
from .samplers import EpisodicSampler, LongTailSampler
from .shared_records import shared_records
from .statistics import classifier_node
from .validate import check_masks, without_invisible

logger = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]
MakeSampler = Callable[..., Sampler]
"""Makes a sampler, given ``seed=`` and nothing else; keeps no records, which are large."""


def sampler_classes() -> dict[str, type[LongTailSampler]]:
    """Samplers of this package that ``DATALOADER.SAMPLER_TRAIN`` can name, by name."""
    return {
        name: value
        for name, value in vars(samplers).items()
        if inspect.isclass(value)
        and issubclass(value, LongTailSampler)
        and value is not LongTailSampler
    }


def detectron2_samplers() -> dict[str, Callable[[CfgNode, Records], MakeSampler]]:
    """Detectron2's samplers by name: from a config and records, what makes one from a seed."""
    return {
        "TrainingSampler": lambda cfg, records: partial(TrainingSampler, len(records)),
        "RepeatFactorTrainingSampler": lambda cfg, records: partial(
            RepeatFactorTrainingSampler,
            RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                records.class_records() if isinstance(records, SharedRecords) else records,
                _repeat_threshold(cfg, records),
            ),
        ),
        "RandomSubsetTrainingSampler": lambda cfg, records: partial(
            _random_subset_sampler, len(records), cfg.DATALOADER.RANDOM_SUBSET_RATIO
        ),
    }


def _random_subset_sampler(size: int, ratio: float, seed: int) -> Sampler:
    return RandomSubsetTrainingSampler(size, ratio, seed_shuffle=seed, seed_subset=seed + 1)


def build_train_loader(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """
    The loader of ``DATASETS.TRAIN`` with the sampler ``DATALOADER.SAMPLER_TRAIN``.

    Its batches depend on ``SEED``, or on a random seed that all processes share where that is
    negative; see :class:`TrainingLoader`. Names of samplers that are neither of this package nor
    known here are left to Detectron2; such a loader begins anew when a training resumes.

    Raises:
        ConfigError: nobody knows the sampler, or its hyper-parameters are out of range.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    known = sorted({*sampler_classes(), *detectron2_samplers()})
    if name not in known:
        try:
            return build_detection_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))
        except ValueError as error:
            if "sampler" not in str(error):
                raise
            raise ConfigError(
                f"DATALOADER.SAMPLER_TRAIN is {name!r}, expected one of: {', '.join(known)}"
            ) from error
    batch_size = _images_per_process(cfg)
    records = training_records(cfg)
    make_sampler = sampler_factory(cfg, records)
    mapper = build_mapper(cfg, is_train=True)
    if name == EpisodicSampler.__name__:
        records, mapper = LabelledRecords(records), MarkSampledObjects(mapper)
    logger.info("Training sampler: %s", name)
    return TrainingLoader(
        records,
        mapper,
        make_sampler,
        batch_size=batch_size,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        by_aspect_ratio=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _images_per_process(cfg: CfgNode) -> int:
    images, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if images < 1 or images % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {images}, expected a multiple of the {processes} processes"
        )
    return images // processes


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
    """Detectron2's loader of a test set."""
    mapper = build_mapper(cfg, is_train=False)
    return build_detection_test_loader(cfg, dataset_name, mapper=mapper)


def training_records(cfg: CfgNode) -> Records:
    """
    The records that the trainer uses, in the order that samplers count in.

    Without boxes that have no area inside their image, which mappers drop from batches, and
    without the images that this leaves empty if ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``.

    Every process must call it: one of each machine parses large annotation files for all.
    """
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records = None
    if not keypoints and not cfg.MODEL.LOAD_PROPOSALS:
        records = shared_records(cfg.DATASETS.TRAIN, filter_empty)
    if records is None:
        proposals = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty, keypoints, proposal_files=proposals
        )
        if isinstance(records, list):  # others, as Open Images', have checked their boxes
            records = _with_visible_objects(records, filter_empty)
    if cfg.MODEL.MASK_ON:
        is_shared = isinstance(records, SharedRecords)
        lacking = records.without_masks() if is_shared else records
        check_masks(lacking, " and ".join(cfg.DATASETS.TRAIN))
    return records


def _with_visible_objects(records: list[dict[str, Any]], filter_empty: bool) -> Records:
    visible = list(map(without_invisible, records))
    if not filter_empty:
        return visible
    return [
        record
        for record, whole in zip(visible, records)
        if record is whole or any(not a.get("iscrowd", 0) for a in record["annotations"])
    ]


def _image_classes(cfg: CfgNode, records: Records) -> ImageClasses:
    return ImageClasses.from_records(records, cfg.MODEL[classifier_node(cfg)].NUM_CLASSES)


def _repeat_threshold(cfg: CfgNode, records: Records) -> float:
    """
    ``DATALOADER.REPEAT_THRESHOLD``, or chosen if ``LONG_TAIL.REPEAT_THRESHOLD`` is "auto".

    Frequencies are shares of all records, as samplers have them: also of images without objects.
    """
    if cfg.LONG_TAIL.REPEAT_THRESHOLD != "auto":
        return cfg.DATALOADER.REPEAT_THRESHOLD
    statistics = _image_classes(cfg, records).statistics()
    threshold = auto_threshold(statistics)
    logger.info(
        "REPEAT_THRESHOLD auto: classes in fewer than %.4g of %d images are repeated",
        threshold * statistics.num_images,
        statistics.num_images,
    )
    return threshold


def sampler_factory(cfg: CfgNode, records: Records) -> MakeSampler:
    """
    What makes the sampler ``DATALOADER.SAMPLER_TRAIN`` for these records from a seed.

    Raises:
        ConfigError: ``LONG_TAIL.REPEAT_THRESHOLD`` is neither "" nor "auto".
        DatasetError: an object is of none of the detector's classes.
    """
    choice = cfg.LONG_TAIL.REPEAT_THRESHOLD
    if choice not in ("", "auto"):
        raise ConfigError(
            f"LONG_TAIL.REPEAT_THRESHOLD is {choice!r}, expected 'auto' or '': a number goes to "
            "DATALOADER.REPEAT_THRESHOLD"
        )
    name = cfg.DATALOADER.SAMPLER_TRAIN
    stock = detectron2_samplers().get(name)
    if stock is not None:
        return stock(cfg, records)
    sampler_class = sampler_classes()[name]
    images = _image_classes(cfg, records)
    arguments = {key.lower(): value for key, value in cfg.LONG_TAIL.SAMPLER[name].items()}
    parameters = inspect.signature(sampler_class).parameters
    if "threshold" in parameters:
        arguments["threshold"] = _repeat_threshold(cfg, records)
    if "total" in parameters:
        arguments["total"] = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH

    def make_sampler(seed: int) -> Sampler:
        try:
            sampler = sampler_class(images, seed, **arguments)
            return LabelledEpisodes(sampler) if sampler_class is EpisodicSampler else sampler
        except ValueError as error:
            raise ConfigError(f"LONG_TAIL.SAMPLER.{name}: {error}") from error

    return make_sampler
