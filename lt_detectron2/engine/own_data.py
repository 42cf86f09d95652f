"""One's own annotations, named in LONG_TAIL.DATA: registered, counted, and what they decide."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.datasets.annotation_json import AnnotationSummary, summarize_annotation_json
from ..data.datasets.custom import CustomMetadata, register_annotations
from ..data.own import OwnData
from ..data.split import classes_of_one_part, split_annotations
from ..data.statistics import classifier_node
from ..errors import ConfigError, DatasetError
from ..modeling.components import build
from .compensation import double_compensation

logger = logging.getLogger(__name__)

SCORE_THRESHOLD = 1e-4
"""Detectron2's 0.05 hides rare classes, whose scores are low; this is what LVIS is tested with."""

MIN_DETECTIONS, MAX_DETECTIONS = 300, 1000
"""Of an image. Detectron2's 100 may be full before the first object of a rare class."""

STEPS = (2 / 3, 8 / 9)
"""Parts of a training after which the learning rate falls, where it falls in steps."""

NUM_EVALUATIONS = 4
WARMUP_SHARE, MAX_WARMUP = 0.1, 1000


def prepare_own_data(cfg: CfgNode, already_set: set[str]) -> None:
    """
    Registers the sets of LONG_TAIL.DATA and sets what depends on them, in place.

    Args:
        cfg: not frozen. Without such sets nothing is changed.
        already_set: keys that a config file or the command line has set; they stay.

    Raises:
        ConfigError: NUM_CLASSES was set to another number of classes.
        DatasetError: annotations cannot be used, or those of validation have other categories.
    """
    own = build("LONG_TAIL.DATA", OwnData, cfg.LONG_TAIL.DATA)
    if not (own.train or own.val):
        return
    train, val = (Path(path).expanduser() if path else None for path in (own.train, own.val))
    train_images = own.train_images or (train.parent if train else "")
    val_images = own.val_images or (val.parent if val else train_images)
    if train and not val and own.val_share:
        summarize_annotation_json(train)  # what is wrong is said of this file, not of its parts
        folder = Path(cfg.OUTPUT_DIR).absolute().parent
        train, val = split_annotations(train, folder, share=own.val_share, seed=own.split_seed)
    if train:
        cfg.DATASETS.TRAIN = (register_annotations(train, train_images),)
    if val:
        cfg.DATASETS.TEST = (register_annotations(val, val_images),)

    # A model may be evaluated where its training annotations are not.
    counted = train if train and (train.is_file() or not val) else val
    summary = summarize_annotation_json(counted)
    if val and counted == train:
        _check_same_categories(train, val)
    _set_num_classes(cfg, already_set, summary, counted)
    choices = _choices(cfg, already_set, own, summary)
    cfg.merge_from_list(
        [part for key, value in choices.items() if key not in already_set for part in (key, value)]
    )


def check_image_files(name: str) -> None:
    """
    Look for some images of a set that was registered from an annotation file.

    Raises:
        DatasetError: none of them is where it should be; says what was looked for.
    """
    metadata = MetadataCatalog.get(name)
    if not isinstance(metadata, CustomMetadata):
        return
    names = summarize_annotation_json(metadata.json_file).file_names
    paths = [os.path.join(metadata.image_root, name) for name in names]
    if paths and not any(map(os.path.isfile, paths)):
        raise DatasetError(
            f"{metadata.json_file}: no image is where it should be, for instance {paths[0]!r}: its "
            f"file_name {names[0]!r} is relative to the folder of images, so set "
            "LONG_TAIL.DATA.TRAIN_IMAGES and VAL_IMAGES"
        )


def log_own_data(cfg: CfgNode) -> None:
    """Say what was found in the annotations, and what training and evaluation make of it."""
    own = cfg.LONG_TAIL.DATA
    if not (own.TRAIN or own.VAL):
        return
    for sentence in double_compensation(cfg):
        logger.warning("%s.", sentence)
    found = {}
    for part, names in (("training", cfg.DATASETS.TRAIN), ("validation", cfg.DATASETS.TEST)):
        for name in names:
            path = MetadataCatalog.get(name).get("json_file", "")
            if os.path.isfile(path):
                found[part] = Path(path)
                _log_set(part, path)
    if own.TRAIN and own.VAL and os.path.realpath(own.TRAIN) == os.path.realpath(own.VAL):
        logger.warning(
            "%s is training and validation set: its AP says how well the detector knows these "
            "images by heart. Leave LONG_TAIL.DATA.VAL empty, and a part is kept for validation.",
            own.VAL,
        )
    if own.TRAIN and not own.VAL and len(found) == 2:
        _log_split(own, found["training"], found["validation"])
    if "training" in found:
        _log_schedule(cfg, summarize_annotation_json(found["training"]))
    node = classifier_node(cfg)
    threshold = cfg.MODEL[node].SCORE_THRESH_TEST
    logger.info(
        "Tested with MODEL.%s.SCORE_THRESH_TEST %g and TEST.DETECTIONS_PER_IMAGE %d",
        *(node, threshold, cfg.TEST.DETECTIONS_PER_IMAGE),
    )
    if threshold > 0.01:
        logger.warning(
            "A score threshold of %g hides rare classes, whose scores are low: leave it at %g for "
            "evaluation, and raise it only to show detections",
            *(threshold, SCORE_THRESHOLD),
        )


def _check_same_categories(train: Path, val: Path) -> None:
    first, second = summarize_annotation_json(train), summarize_annotation_json(val)
    names = [dict(zip(s.category_ids, s.class_names)) for s in (first, second)]
    if names[0] == names[1]:
        return
    different = [
        id for id in sorted({*names[0], *names[1]}) if names[0].get(id) != names[1].get(id)
    ]
    shown = [f"{id} is {' and '.join(_shown(n.get(id)) for n in names)}" for id in different[:3]]
    raise DatasetError(
        f"{train} and {val} list different categories: id {'; id '.join(shown)}. Give both files "
        "the same list of categories, also those without an object; classes are numbered by it"
    )


def _shown(name: str | None) -> str:
    return "missing" if name is None else repr(name)


def _set_num_classes(
    cfg: CfgNode, already_set: set[str], summary: AnnotationSummary, source: Path
) -> None:
    node = classifier_node(cfg)
    key, num_classes = f"MODEL.{node}.NUM_CLASSES", len(summary.class_names)
    if key in already_set and cfg.MODEL[node].NUM_CLASSES != num_classes:
        listed = ", ".join(summary.class_names[:8]) + (", ..." if num_classes > 8 else "")
        raise ConfigError(
            f"{key} is {cfg.MODEL[node].NUM_CLASSES}, {source} has {num_classes} categories "
            f"({listed}): leave the key out, it is counted"
        )
    cfg.MODEL[node].NUM_CLASSES = num_classes


def _choices(
    cfg: CfgNode, already_set: set[str], own: OwnData, summary: AnnotationSummary
) -> dict[str, Any]:
    """What suits these annotations, by key."""
    if cfg.SOLVER.IMS_PER_BATCH < 1:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, expected the number of images of "
            "a step, 1 or more: write 16, or fewer if memory is short"
        )
    images = _images_trained_on(cfg, summary)
    iterations = max(own.min_iterations, math.ceil(own.epochs * images / cfg.SOLVER.IMS_PER_BATCH))
    if "SOLVER.MAX_ITER" in already_set:
        iterations = cfg.SOLVER.MAX_ITER
    period = max(1, math.ceil(iterations / NUM_EVALUATIONS))
    crowded = 100 * math.ceil(2 * summary.most_objects / 100)
    return {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": tuple(math.ceil(step * iterations) for step in STEPS),
        "SOLVER.WARMUP_ITERS": min(MAX_WARMUP, math.ceil(WARMUP_SHARE * iterations)),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period,
        "TEST.DETECTIONS_PER_IMAGE": min(max(MIN_DETECTIONS, crowded), MAX_DETECTIONS),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": SCORE_THRESHOLD,
        "MODEL.RETINANET.SCORE_THRESH_TEST": SCORE_THRESHOLD,
    }


def _images_trained_on(cfg: CfgNode, summary: AnnotationSummary) -> int:
    filtered = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    return summary.num_annotated if filtered else summary.num_images


def _log_set(part: str, path: str) -> None:
    summary = summarize_annotation_json(path)
    logger.info(
        "%s: %s, %s format, %d classes, %d objects in %d of %d images",
        part.capitalize(),
        path,
        summary.format.upper(),
        len(summary.class_names),
        summary.num_objects,
        summary.num_annotated,
        summary.num_images,
    )


def _log_split(own: CfgNode, train: Path, val: Path) -> None:
    logger.info(
        "The two were split from %s: %.3g of each class's images for validation, seed %d. Every "
        "training with this file, share and seed has the same split.",
        own.TRAIN,
        own.VAL_SHARE,
        own.SPLIT_SEED,
    )
    for part, names in classes_of_one_part((train, val)).items():
        if names:
            logger.warning(
                "%d classes have too few images to be in both parts, and are in %s only: %s%s",
                len(names),
                {"train": "training", "val": "validation"}[part],
                ", ".join(names[:10]),
                ", ..." if len(names) > 10 else "",
            )


def _log_schedule(cfg: CfgNode, summary: AnnotationSummary) -> None:
    images = max(1, _images_trained_on(cfg, summary))
    logger.info(
        "Schedule: %d iterations of %d images, %.3g epochs, learning rate %g%s",
        cfg.SOLVER.MAX_ITER,
        cfg.SOLVER.IMS_PER_BATCH,
        cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / images,
        cfg.SOLVER.BASE_LR,
        "; written for one process and rescaled for more"
        if cfg.SOLVER.REFERENCE_WORLD_SIZE == 1
        else "",
    )
