"""Mean features of classes over the training set, for the nearest class mean classifier."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..calibration import ClassMeans, NearestClassMean
from ..data.build import training_records
from ..data.digest import file_digest
from ..data.images import CheckedMapper
from ..errors import ConfigError, reason
from ..files import replacing
from ..modeling.box_predictor import BoxPredictions
from ..progress import track
from .modes import in_test_mode

logger = logging.getLogger(__name__)

MEANS_FILE = "class_means.pth"

FEATURE_KEYS = ("PIXEL_MEAN", "PIXEL_STD", "RESNETS", "FPN", "ROI_BOX_HEAD")
"""Of MODEL, what features of a box depend on beside the weights."""

PROPOSAL_KEYS = ("PROPOSAL_GENERATOR", "ANCHOR_GENERATOR", "RPN", "ROI_BOX_CASCADE_HEAD")
SAMPLING_KEYS = (
    *("BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION", "PROPOSAL_APPEND_GT"),
    *("IOU_THRESHOLDS", "IOU_LABELS"),
)
"""Of MODEL and MODEL.ROI_HEADS, what labelled proposals depend on."""

Means = list[tuple[Tensor, Tensor]]
"""Means (K, D) and counts (K,) of each stage."""


def prepare_calibration(cfg: CfgNode, model: nn.Module) -> None:
    """
    Give a NearestClassMean of a detector its means, in place; nothing for all other methods.

    They are gathered in one pass over ``DATASETS.TRAIN`` and kept in ``OUTPUT_DIR``, from where
    they are read as long as weights and settings are the same, and the annotations of the training
    set if any is named. A collective.

    Raises:
        ConfigError: there is no training set to gather them from.
    """
    model = getattr(model, "module", model)
    stages = getattr(getattr(model, "roi_heads", None), "box_stages", [])
    methods = [predictor.calibration for _, predictor in stages]
    if not methods or not isinstance(methods[0], NearestClassMean):
        return
    path = os.path.join(cfg.OUTPUT_DIR, MEANS_FILE)
    key = _key(cfg, model, methods[0])
    is_main = comm.is_main_process()
    means = comm.all_gather(_read(path, key, _training_sets(cfg)) if is_main else None)[0]
    if means is None:
        means = gather_class_means(cfg, model)
        if is_main:
            sets = _training_sets(cfg)  # some make their files when they are read
            with replacing(path, "wb") as file:
                torch.save({"key": key, "sets": sets, "means": means}, file)
            logger.info("Class means are kept in %s", path)
    for method, (mean, count) in zip(methods, means):
        device = next(model.parameters()).device
        method.set_means(mean.to(device), count.to(device))


def gather_class_means(cfg: CfgNode, model: nn.Module) -> Means:
    """Means and counts of each stage over the training set, on the CPU. A collective."""
    if not cfg.DATASETS.TRAIN:
        raise ConfigError(
            "NearestClassMean averages features over the training set, and DATASETS.TRAIN is "
            f"empty: name the set, or copy {MEANS_FILE} of an earlier evaluation to OUTPUT_DIR"
        )
    stages = model.roi_heads.box_stages
    method = stages[0][1].calibration
    gathered = [ClassMeans(model.roi_heads.num_classes) for _ in stages]
    with in_test_mode(model), torch.no_grad(), EventStorage():
        for batch in _with_progress(training_images(cfg), "class means"):
            for stage, (predictions, classes) in enumerate(
                labelled_regions(model, batch, method.source)
            ):
                outputs = stages[stage][1].region_outputs(predictions)
                gathered[stage].update(method.region_features(outputs), classes)
    return [tuple(tensor.cpu() for tensor in means.reduce()) for means in gathered]


def training_images(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """The training set once, resized as for testing, with annotations; a part for each process."""
    workers = cfg.DATALOADER.NUM_WORKERS
    return build_detection_test_loader(
        training_records(cfg), mapper=annotated_image_mapper(cfg), num_workers=workers
    )


def annotated_image_mapper(cfg: CfgNode) -> CheckedMapper:
    """From records to images as for testing, but with their annotations."""
    mapper = DatasetMapper(
        is_train=True,
        augmentations=build_augmentation(cfg, is_train=False),
        image_format=cfg.INPUT.FORMAT,
    )
    return CheckedMapper(mapper)


def labelled_regions(
    model: nn.Module, batch: list[dict[str, Any]], source: str
) -> Iterator[tuple[BoxPredictions, Tensor]]:
    """Of each stage its predictions for labelled regions, and their classes."""
    heads = model.roi_heads
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    targets = [image["instances"].to(images.tensor.device) for image in batch]
    if source == "ground_truth":
        classes = torch.cat([image.gt_classes for image in targets])
        boxes = [image.gt_boxes for image in targets]
        for stage in range(len(heads.box_stages)):
            yield heads.run_box_stage(features, boxes, stage), classes
        return
    proposals, _ = model.proposal_generator(images, features, None)
    proposals = heads.label_and_sample_proposals(proposals, targets)
    for stage, (_, predictor) in enumerate(heads.box_stages):
        regions = [image.proposal_boxes for image in proposals]
        predictions = heads.run_box_stage(features, regions, stage)
        yield predictions, torch.cat([image.gt_classes for image in proposals])
        if stage + 1 < len(heads.box_stages):
            boxes = predictor.predict_boxes(predictions, proposals)
            proposals = _next_stage(heads, boxes, stage + 1, targets)


def _next_stage(
    heads: nn.Module, boxes: list[Tensor], stage: int, targets: list[Instances]
) -> list[Instances]:
    # Cascade heads have no public names for this; tests hold both to what training does.
    sizes = [image.image_size for image in targets]
    return heads._match_and_label_boxes(
        heads._create_proposals_from_boxes(boxes, sizes), stage, targets
    )


def _with_progress(loader: Iterable[Any], what: str) -> Iterable[Any]:
    return track(loader, what, quiet=not comm.is_main_process())


def _key(cfg: CfgNode, model: nn.Module, method: NearestClassMean) -> str:
    """Hash of all that the means depend on, but for the training set."""
    settings = [method.feature, method.source, cfg.INPUT, cfg.MODEL.ROI_HEADS.IN_FEATURES]
    settings += [cfg.MODEL[name] for name in FEATURE_KEYS]
    if method.source == "proposals":
        settings += [cfg.MODEL[name] for name in PROPOSAL_KEYS]
        settings += [cfg.MODEL.ROI_HEADS[name] for name in SAMPLING_KEYS]
    # Not str, in which a list differs from the tuple that it is read back as.
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _training_sets(cfg: CfgNode) -> list[list[str]]:
    """Name of each set, and the hash of its annotation file."""
    sets = []
    for name in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(name)
        file = metadata.get("json_file") or metadata.get("annotation_file", "")
        sets.append([name, file_digest(file)])
    return sets


def _same_sets(saved: list[list[str]], now: list[list[str]]) -> bool:
    """Whether nothing tells them apart; where annotations are not to be had, the name decides."""
    return len(saved) == len(now) and all(
        old_name == name and (not old_hash or not file_hash or old_hash == file_hash)
        for (old_name, old_hash), (name, file_hash) in zip(saved, now)
    )


def _read(path: str, key: str, sets: list[list[str]]) -> Means | None:
    if not os.path.isfile(path):
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        kept = saved["key"], saved["sets"]
    except Exception as error:  # damaged archives fail in many ways
        logger.warning("%s cannot be read (%s): gathering anew", path, reason(error))
        return None
    # A detector that is used elsewhere names no training set, and takes what its training has left.
    if kept[0] != key or (sets and not _same_sets(kept[1], sets)):
        logger.info(
            "Class means in %s are of other weights, settings or images: gathering anew", path
        )
        return None
    return saved["means"]
