"""How a model runs for an evaluation: masks left small, and no cap where the metric has none."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances, ROIMasks

from ..errors import UserError
from .prefilter import CategoryCap

logger = logging.getLogger(__name__)

ROI_MASKS = "roi_masks"
"""Field of Instances with the mask head's output, `ROIMasks` of (N, M, M) probabilities."""


@contextlib.contextmanager
def small_masks(model: torch.nn.Module) -> Iterator[None]:
    """
    Within, a Mask R-CNN returns `roi_masks` inside boxes in place of masks as large as the image.

    The evaluator pastes those that the metric looks at. Other models are left as they are.
    """
    model = getattr(model, "module", model)
    if getattr(type(model), "inference", None) is not GeneralizedRCNN.inference:
        yield
        return

    def inference(
        batched_inputs: Sequence[Mapping],
        detected_instances: Sequence[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list:
        images = GeneralizedRCNN.inference(model, batched_inputs, detected_instances, False)
        if not do_postprocess:
            return images
        outputs = []
        for image, instances in zip(batched_inputs, images):
            if instances.has("pred_masks"):
                instances.set(ROI_MASKS, ROIMasks(instances.pred_masks[:, 0]))
                instances.remove("pred_masks")
            height = image.get("height", instances.image_size[0])
            width = image.get("width", instances.image_size[1])
            outputs.append({"instances": detector_postprocess(instances, height, width)})
        return outputs

    model.inference = inference
    try:
        yield
    finally:
        del model.inference


@contextlib.contextmanager
def all_detections(model: torch.nn.Module, category_cap: CategoryCap) -> Iterator[None]:
    """
    Within, box predictors return every detection that may be among the best of its category.

    NMS goes by falling score within a class, so leaving out what scores less than a class needs
    changes nothing above it. What it needs rises while the model runs.

    Raises:
        UserError: the model has another number of classes than the set that it is evaluated on.
    """
    predictors = [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]
    if not predictors:
        logger.warning(
            "This model has no box predictor of Detectron2's Fast R-CNN, so its own cap of "
            "detections stays: AP-fixed will be lower than it could be"
        )
    for predictor in predictors:
        if predictor.num_classes != len(category_cap.thresholds):
            raise UserError(
                f"expected a model of the {len(category_cap.thresholds)} classes of the evaluation "
                f"set, it has {predictor.num_classes}: it was trained on other classes"
            )
    before = [(p.test_topk_per_image, p.test_score_thresh) for p in predictors]

    def raise_thresholds(*_: object) -> None:
        # Detections must score more than the threshold; those that equal the worst may count.
        needed = np.nextafter(category_cap.thresholds, np.float32(-1))
        for predictor, (_, threshold) in zip(predictors, before):
            device = next(predictor.parameters()).device
            predictor.test_score_thresh = torch.from_numpy(needed).clamp(min=threshold).to(device)

    handle = model.register_forward_pre_hook(raise_thresholds)
    for predictor in predictors:
        predictor.test_topk_per_image = -1
    try:
        yield
    finally:
        handle.remove()
        for predictor, (topk, threshold) in zip(predictors, before):
            predictor.test_topk_per_image, predictor.test_score_thresh = topk, threshold


@contextlib.contextmanager
def running_for(evaluator: DatasetEvaluator, model: torch.nn.Module) -> Iterator[None]:
    """Within, the model returns what our evaluators work with; for others it is left as it is."""
    with contextlib.ExitStack() as stack:
        if hasattr(evaluator, "category_cap"):
            stack.enter_context(small_masks(model))
            if evaluator.category_cap is not None:
                stack.enter_context(all_detections(model, evaluator.category_cap))
        yield
