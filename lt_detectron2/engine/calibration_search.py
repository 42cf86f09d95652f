"""
Choosing a calibration's hyper-parameter on images of the training set.

The detector runs once. What its box heads say about the regions is kept, and each value of the
hyper-parameter only makes scores, detections and AP of it anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.modeling.postprocessing import detector_postprocess
from torch import nn

from ..calibration import NearestClassMean
from ..calibration.search import Trial, sweep
from ..data.held_out import stratified_images
from ..data.image_classes import ImageClasses
from ..data.images import build_mapper
from ..data.shared_records import parse_once
from ..errors import ConfigError
from ..evaluation import (
    CategoryGroups,
    Detections,
    GroundTruth,
    Protocol,
    groups_from_statistics,
    match,
    precision_recall,
    read_annotations,
    summarize,
)
from ..modeling.box_predictor import BoxPredictions
from ..modeling.components import build_calibration
from ..modeling.roi_heads import RegionPredictions
from ..progress import track
from ..statistics import ClassStatistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedImage:
    """What the box heads say about an image, on the CPU, and the image's own height and width."""

    image_id: int
    size: tuple[int, int]
    regions: RegionPredictions


class HeldOut:
    """
    Images of a training set, their annotations, and how good detections on them are.

    Args:
        cfg: names one training set, with annotations in a file of the COCO or LVIS format.
        statistics: counts of the whole set, for APr, APc and APf.
        share: of each class's images, see :func:`stratified_images`.
        max_images: at most.
        seed: of the choice.

    Raises:
        ConfigError: another number of training sets, or one without such a file.
    """

    def __init__(
        self,
        cfg: CfgNode,
        statistics: ClassStatistics,
        share: float = 0.2,
        max_images: int = 1000,
        seed: int = 0,
    ):
        if len(cfg.DATASETS.TRAIN) != 1:
            raise ConfigError(
                f"a calibration is chosen on images of one training set, and DATASETS.TRAIN is "
                f"{tuple(cfg.DATASETS.TRAIN)}: name one"
            )
        name = cfg.DATASETS.TRAIN[0]
        records = parse_once(name)
        images = ImageClasses.from_records(records, statistics.num_classes)
        chosen = stratified_images(images, share, max_images, seed)
        self.records = [records[index] for index in chosen.tolist()]
        self.protocol = Protocol(max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE)
        self._load_annotations(name, statistics)
        logger.info(
            "%s: %d of %d images, with objects of %d of %d classes",
            name,
            len(self.records),
            len(records),
            int((self.ground_truth.instance_count > 0).sum()),
            statistics.num_classes,
        )

    def _load_annotations(self, name: str, statistics: ClassStatistics) -> None:
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        if kind not in ("lvis", "coco") or not metadata.get("json_file"):
            raise ConfigError(
                f"training set {name!r} has no annotations in a file of the COCO or LVIS format: "
                "name one that has, registered with register_coco_instances for example"
            )
        dataset = read_annotations(metadata.json_file)
        ids = {record["image_id"] for record in self.records}
        part = dict(dataset)
        part["images"] = [image for image in dataset["images"] if image["id"] in ids]
        part["annotations"] = [a for a in dataset["annotations"] if a["image_id"] in ids]
        read = GroundTruth.from_lvis if kind == "lvis" else GroundTruth.from_coco
        self.ground_truth: GroundTruth = read(part)
        categories = sorted(category["id"] for category in dataset["categories"])
        mapping = metadata.get("thing_dataset_id_to_contiguous_id") or {
            category: index for index, category in enumerate(categories)
        }
        self.groups: CategoryGroups = groups_from_statistics(self.ground_truth, statistics, mapping)
        self.category_of_class = np.zeros(len(mapping), dtype=np.int64)
        for category, index in mapping.items():
            self.category_of_class[index] = category

    def metrics(self, detections: Detections) -> dict[str, float]:
        """Box metrics of the LVIS challenge in [0, 1]; categories of detections are classes."""
        categories = self.category_of_class[detections.category_ids]
        detections = Detections(
            detections.image_ids, categories, detections.scores, detections.boxes
        )
        matches = match(self.ground_truth, detections, protocol=self.protocol)
        return summarize(precision_recall(matches), self.groups)


@torch.no_grad()
def cache_regions(
    cfg: CfgNode, model: nn.Module, records: Sequence[dict[str, Any]], keep: Sequence[str]
) -> list[CachedImage]:
    """
    Run a detector up to its box heads and keep what they say.

    Args:
        cfg: of the detector.
        model: put into evaluation mode.
        records: images.
        keep: what is kept beside logits and boxes, names as in ``Calibration.required``.
    """
    loader = build_detection_test_loader(
        list(records),
        mapper=build_mapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    model.eval()
    cached: list[CachedImage] = []
    for (record,) in track(loader, "forward pass"):
        images = model.preprocess_image([record])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        regions = model.roi_heads.predict_regions(features, proposals)
        size = (record.get("height", images.image_sizes[0][0]),)
        size += (record.get("width", images.image_sizes[0][1]),)
        kept = _moved(_without_unused(regions, keep), torch.device("cpu"))
        cached.append(CachedImage(record["image_id"], size, kept))
        if len(cached) == 1:
            gigabytes = _num_bytes(kept) * len(records) / 1e9
            logger.info("%d images will take about %.1f GB", len(records), gigabytes)
    return cached


@torch.no_grad()
def detect(cached: Iterable[CachedImage], device: torch.device) -> Detections:
    """Detections with the calibrations that the predictors have now; category ids are classes."""
    parts = []
    for image in cached:
        (found,) = _moved(image.regions, device).detections()
        found = detector_postprocess(found, *image.size)
        boxes = found.pred_boxes.tensor.float().cpu().numpy()
        parts.append(
            Detections(
                image_ids=np.full(len(boxes), image.image_id, dtype=np.int64),
                category_ids=found.pred_classes.cpu().numpy(),
                scores=found.scores.float().cpu().numpy(),
                boxes=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
            )
        )
    return Detections.concatenate(parts)


def search(
    cfg: CfgNode,
    model: nn.Module,
    held_out: HeldOut,
    statistics: ClassStatistics,
    parameter: str,
    values: Sequence[float],
) -> list[Trial]:
    """
    Metrics of the calibration of a config for each value of one of its hyper-parameters.

    Args:
        cfg: names the calibration.
        model: its detector, prepared; its calibration has the last value afterwards.
        held_out: where to measure.
        statistics: counts of the training set.
        parameter: keyword of the method.
        values: to try.
    """
    predictors = [predictor for _, predictor in model.roi_heads.box_stages]
    device = next(model.parameters()).device
    # Class means stay what they are, whatever the hyper-parameter.
    buffers = [dict(predictor.calibration.named_buffers()) for predictor in predictors]
    cached = cache_regions(cfg, model, held_out.records, predictors[0].calibration.required)

    def evaluate(value: float) -> dict[str, float]:
        start = time.perf_counter()
        fresh = with_value(cfg, parameter, value)
        for predictor, kept in zip(predictors, buffers):
            calibration = build_calibration(fresh, statistics).to(device)
            if isinstance(calibration, NearestClassMean):
                calibration.set_means(kept["class_means"], kept["is_known"])
            predictor.set_calibration(calibration)
        metrics = held_out.metrics(detect(cached, device))
        seconds = time.perf_counter() - start
        logger.info("%s %g: AP %.2f (%.1f s)", parameter, value, 100 * metrics["AP"], seconds)
        return metrics

    return sweep(values, evaluate)


def with_value(cfg: CfgNode, parameter: str, value: float) -> CfgNode:
    """
    The config with a hyper-parameter of its calibration set.

    Raises:
        ConfigError: the method has no such number.
    """
    name = cfg.LONG_TAIL.CALIBRATION.NAME
    node = cfg.LONG_TAIL.CALIBRATION[name]
    if not isinstance(node.get(parameter.upper()), float):
        numbers = [key.lower() for key, number in node.items() if isinstance(number, float)]
        raise ConfigError(
            f"{name} has no number {parameter!r} to choose, expected one of: {', '.join(numbers)}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.LONG_TAIL.CALIBRATION[name][parameter.upper()] = float(value)
    cfg.freeze()
    return cfg


def _without_unused(regions: RegionPredictions, keep: Sequence[str]) -> RegionPredictions:
    stages = tuple(
        (
            predictor,
            BoxPredictions(
                predictions[0],
                predictions[1][:, :0],  # what makes the boxes has them
                predictions.features if "features" in keep else predictions.features[:, :0],
                predictions.pooled_features if "pooled_features" in keep else None,
            ),
            proposals,
        )
        for predictor, predictions, proposals in regions.stages
    )
    return replace(regions, stages=stages)


def _moved(regions: RegionPredictions, device: torch.device) -> RegionPredictions:
    def predictions_on_device(predictions: BoxPredictions) -> BoxPredictions:
        pooled = predictions.pooled_features
        logits, deltas = predictions
        features = predictions.features.to(device)
        pooled = None if pooled is None else pooled.to(device)
        return BoxPredictions(logits.to(device), deltas.to(device), features, pooled)

    stages = tuple(
        (predictor, predictions_on_device(predictions), [image.to(device) for image in proposals])
        for predictor, predictions, proposals in regions.stages
    )
    boxes = [of_image.to(device) for of_image in regions.boxes]
    proposal_scores = regions.proposal_scores
    if proposal_scores is not None:
        proposal_scores = tuple(scores.to(device) for scores in proposal_scores)
    return replace(regions, stages=stages, boxes=boxes, proposal_scores=proposal_scores)


def _num_bytes(regions: RegionPredictions) -> int:
    tensors = []
    for _, predictions, _ in regions.stages:
        tensors += [predictions[0], predictions.features]
        if predictions.pooled_features is not None:
            tensors.append(predictions.pooled_features)
    own = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return own + sum(boxes.num_bytes for boxes in regions.boxes)
