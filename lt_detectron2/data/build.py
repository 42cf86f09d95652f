"""The training loader: Detectron2's, with samplers of this package and the ability to resume."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
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

from ..errors import ConfigError
from . import samplers
from .episodes import LabelledEpisodes, LabelledRecords, MarkSampledObjects
from .image_classes import ImageClasses
from .images import build_mapper
from .record_store import SharedRecords
from .samplers import EpisodicSampler, LongTailSampler, ResumableSampler, ResumedSampler
from .shared_records import shared_records
from .validate import check_masks

logger = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]


def sampler_classes() -> dict[str, type[LongTailSampler]]:
    """Samplers of this package that ``DATALOADER.SAMPLER_TRAIN`` can name, by name."""
    return {
        name: value
        for name, value in vars(samplers).items()
        if inspect.isclass(value)
        and issubclass(value, LongTailSampler)
        and value is not LongTailSampler
    }


def detectron2_samplers() -> dict[str, Callable[[CfgNode, Records], Any]]:
    """Detectron2's samplers, as it makes them from a config."""
    return {
        "TrainingSampler": lambda cfg, records: TrainingSampler(len(records)),
        "RepeatFactorTrainingSampler": lambda cfg, records: RepeatFactorTrainingSampler(
            RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                records.class_records() if isinstance(records, SharedRecords) else records,
                cfg.DATALOADER.REPEAT_THRESHOLD,
            )
        ),
        "RandomSubsetTrainingSampler": lambda cfg, records: RandomSubsetTrainingSampler(
            len(records), cfg.DATALOADER.RANDOM_SUBSET_RATIO
        ),
    }


def build_train_loader(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """
    Detectron2's loader of ``DATASETS.TRAIN`` with the sampler ``DATALOADER.SAMPLER_TRAIN``.

    Names that are neither of this package nor known here are left to Detectron2; such a sampler
    begins anew when a training resumes.

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
    records = training_records(cfg)
    sampler = build_sampler(cfg, records)
    logger.info("Training sampler: %s", name)
    mapper = build_mapper(cfg, is_train=True)
    if isinstance(sampler, EpisodicSampler):
        records, sampler = LabelledRecords(records), LabelledEpisodes(sampler)
        mapper = MarkSampledObjects(mapper)
    loader = build_detection_train_loader(cfg, mapper=mapper, dataset=records, sampler=sampler)
    loader.resumable_sampler = sampler
    return loader


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
    """Detectron2's loader of a test set."""
    mapper = build_mapper(cfg, is_train=False)
    return build_detection_test_loader(cfg, dataset_name, mapper=mapper)


def training_records(cfg: CfgNode) -> Records:
    """
    The records that the trainer uses, in the order that samplers count in.

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
    if cfg.MODEL.MASK_ON:
        is_shared = isinstance(records, SharedRecords)
        lacking = records.without_masks() if is_shared else records
        check_masks(lacking, " and ".join(cfg.DATASETS.TRAIN))
    return records


def build_sampler(cfg: CfgNode, records: Records) -> ResumableSampler:
    """
    The sampler ``DATALOADER.SAMPLER_TRAIN`` for these records.

    Samplers of this package are seeded with ``SEED``, or share a random seed where that is
    negative; Detectron2's are seeded as it does.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    stock = detectron2_samplers().get(name)
    if stock is not None:
        return ResumedSampler(stock(cfg, records))
    sampler_class = sampler_classes()[name]
    images = ImageClasses.from_records(records, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    arguments = {key.lower(): value for key, value in cfg.LONG_TAIL.SAMPLER[name].items()}
    wired = {
        "seed": cfg.SEED if cfg.SEED >= 0 else None,
        "threshold": cfg.DATALOADER.REPEAT_THRESHOLD,
        "total": cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH,
    }
    parameters = inspect.signature(sampler_class).parameters
    wired = {key: value for key, value in wired.items() if key in parameters}
    try:
        return sampler_class(images, **wired, **arguments)
    except ValueError as error:
        raise ConfigError(f"LONG_TAIL.SAMPLER.{name}: {error}") from error


def skip_seen_images(loader: Any, num_images: int) -> bool:
    """
    Let the next iteration over a loader begin after images that this process has trained on.

    Returns:
        whether the loader can; one of :func:`build_train_loader` can for every sampler it knows.
    """
    sampler = getattr(loader, "resumable_sampler", None)
    if sampler is None:
        return False
    sampler.skip_to(num_images)
    return True
