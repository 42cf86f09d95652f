"""
Other people's evaluators on our columns, to check ours against.

The official `lvis` package is the reference for all numbers, and slow. hotcoco is fast and written
by somebody else; it differs where detections or annotations have no area, are ignored or crowds,
so that these are taken out first.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ..errors import UserError
from .detections import Detections
from .ground_truth import GroundTruth
from .metrics import PrecisionRecall
from .protocol import Protocol
from .selection import select


def official_curves(
    annotation_file: str, detections: Detections, iou_type: str, protocol: Protocol
) -> PrecisionRecall:
    """
    Precision and recall as `lvis` 0.5.3 computes them.

    Args:
        annotation_file: an LVIS JSON file.
        iou_type: "bbox" or "segm".
        protocol: LVIS's, with any cap per image.

    Raises:
        UserError: the package is not installed, knows nothing of such a protocol, or miscounts an
            annotation of id 0.
    """
    cap = protocol.max_dets_per_image
    _check_protocol("the official package", iou_type, protocol)
    try:
        import lvis
    except ImportError as error:
        raise UserError(
            f"the official package cannot be used ({error}): pip install --no-deps lvis==0.5.3"
        ) from error
    if not len(detections):
        raise UserError("the official package crashes without detections: use our computation")
    logging.getLogger("lvis").setLevel(logging.ERROR)
    results = list(detections.results())
    if iou_type == "segm":
        # As Detectron2 does, so that the area of the mask decides about the size.
        for result in results:
            del result["bbox"]
    with numpy_of_2022():
        annotations = lvis.LVIS(annotation_file)
        if 0 in annotations.anns:
            raise UserError(
                "expected ids of annotations from 1 on, there is a 0, which the official package "
                "takes for 'no match', so that it counts who finds this object as wrong: give it "
                "another id to compare"
            )
        loaded = lvis.LVISResults(annotations, results, max_dets=-1 if cap is None else cap)
        evaluation = lvis.LVISEval(annotations, loaded, iou_type)
        evaluation.params.max_dets = cap
        evaluation.evaluate()
        evaluation.accumulate()
    return _curves(protocol, evaluation.eval["precision"], evaluation.eval["recall"])


def hotcoco_curves(
    annotation_file: str, detections: Detections, iou_type: str, protocol: Protocol
) -> PrecisionRecall:
    """
    Precision and recall as `hotcoco` computes them from the detections that count.

    Args and errors are those of `official_curves`; annotations marked `ignore` are an error too.
    """
    _check_protocol("hotcoco", iou_type, protocol)
    try:
        import hotcoco
    except ImportError as error:
        raise UserError(f"hotcoco cannot be used ({error}): pip install hotcoco") from error
    with open(annotation_file, encoding="utf-8") as file:
        dataset = json.load(file)
    if any(entry.get("ignore") for entry in dataset["annotations"]):
        raise UserError(
            "hotcoco does not know annotations marked `ignore`, of which this file has some: "
            "compare with the official package, --backend lvis"
        )
    ground_truth = GroundTruth.from_lvis(dataset, with_masks=iou_type == "segm")
    dataset["annotations"] = [
        {key: value for key, value in entry.items() if key != "iscrowd"}
        for entry in dataset["annotations"]
        if entry["area"] > 0
    ]
    counted = detections.take(select(ground_truth, detections, iou_type, protocol).rows)
    annotations = hotcoco.COCO(dataset)
    boxes = counted.boxes.astype(np.float64)
    rows = np.column_stack([counted.image_ids, boxes, counted.scores, counted.category_ids])
    if iou_type == "segm":
        found = annotations.load_res(rows, segmentation=counted.masks.rles())
        areas = counted.masks.areas().astype(np.float64)
        found.update_anns(ids=np.arange(1, len(counted) + 1), area=areas)
    else:
        found = annotations.load_res(rows)
    evaluation = hotcoco.COCOeval(annotations, found, iou_type, lvis_style=True)
    evaluation.params.max_dets = [max(1, len(counted))]
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return _curves(protocol, precision[..., 0], recall[..., 0])


ORACLES: dict[str, Callable[[str, Detections, str, Protocol], PrecisionRecall]] = {
    "lvis": official_curves,
    "hotcoco": hotcoco_curves,
}
"""By the name of the backend."""


def _check_protocol(who: str, iou_type: str, protocol: Protocol) -> None:
    if replace(protocol, max_dets_per_image=300) != Protocol() or iou_type == "boundary":
        raise UserError(
            f"{who} knows boxes and masks under a cap per image only: leave away the other caps, "
            "or use our own computation"
        )


def _curves(protocol: Protocol, precision: np.ndarray, recall: np.ndarray) -> PrecisionRecall:
    """With nan where they have -1."""
    return PrecisionRecall(
        protocol,
        np.where(precision == -1, np.nan, precision),
        np.where(recall == -1, np.nan, recall),
    )


@contextlib.contextmanager
def numpy_of_2022() -> Iterator[None]:
    """`lvis` 0.5.3 uses `np.float`, which NumPy 1.24 removed."""
    missing = not hasattr(np, "float")
    if missing:
        setattr(np, "float", float)  # noqa: B010  spelled out, the name would be flagged
    try:
        yield
    finally:
        if missing:
            delattr(np, "float")
