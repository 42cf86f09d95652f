"""
Cutting a long tail out of any COCO file: how many objects each category keeps, and which.

Shapes: A annotations, K categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import DatasetError
from .datasets.coco_lt_rules import (
    BAGS_TARGETS,
    AnnotationColumns,
    align_profile,
    select_by_profile,
)

PROFILES = ("bags", "zipf", "exponential")


def profile_targets(
    profile: str, counts: np.ndarray, *, exponent: float = 1.0, factor: float = 100.0
) -> np.ndarray:
    """
    (K,) int64 objects that categories keep, largest first, at least 1 each.

    With n_1 the objects of the largest category and k = 1..K,

        bags           the profile of LVIS v0.5, aligned to K categories as BAGS does for COCO
        zipf           n_1 / k^exponent
        exponential    n_1 factor^(-(k - 1) / (K - 1)), as CIFAR-LT and others have it

    The k-th largest category keeps no more than it has; and no category keeps more than a larger
    one. `bags` is scaled down where the file is smaller than COCO.

    Args:
        counts: (K,) objects that the categories have, in any order.
        exponent: of zipf, > 0.
        factor: of exponential, imbalance of the result, >= 1.

    Raises:
        DatasetError: fewer than 2 categories have objects, or an argument is out of range.
    """
    available = np.sort(np.asarray(counts, dtype=np.int64))[::-1]
    if len(available) < 2 or available[-1] < 1:
        raise DatasetError(
            f"expected at least 2 categories, each with an object, found {(available > 0).sum()} "
            f"of {len(available)}: a tail is cut from categories that have objects"
        )
    ranks = np.arange(len(available))
    if profile == "bags":
        wanted = align_profile(BAGS_TARGETS, len(available)).astype(np.float64)
        wanted *= min(1.0, available[0] / wanted[0])
    elif profile == "zipf":
        if not exponent > 0:
            raise DatasetError(f"--exponent is {exponent}, expected a number > 0: 1 is Zipf's law")
        wanted = available[0] / (ranks + 1.0) ** exponent
    elif profile == "exponential":
        if not factor >= 1:
            raise DatasetError(f"--factor is {factor}, expected a number >= 1: 100 is usual")
        wanted = available[0] * factor ** (-ranks / (len(available) - 1))
    else:
        raise DatasetError(f"no profile {profile!r}, there are {', '.join(PROFILES)}")
    targets = np.minimum(available, np.maximum(1, np.floor(wanted + 0.5)).astype(np.int64))
    return np.minimum.accumulate(targets)


def cut_long_tail(
    dataset: Mapping[str, Any],
    profile: str,
    *,
    exponent: float = 1.0,
    factor: float = 100.0,
    seed: int = 0,
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """
    The part of a COCO file that follows a profile; its images are chosen by BAGS' rule.

    Categories without an object are left as they are. Images without a chosen object go.

    Args:
        dataset: content of the file.
        profile, exponent, factor: see :func:`profile_targets`.
        seed: of the order in which images are visited.

    Returns:
        the content without annotations, and the annotations.

    Raises:
        DatasetError: see :func:`profile_targets`; or annotations lack a field.
    """
    entries = dataset.get("annotations", [])
    columns = AnnotationColumns.from_entries(entries)
    _, counts = np.unique(columns.category_ids[~columns.is_crowd], return_counts=True)
    targets = profile_targets(profile, counts, exponent=exponent, factor=factor)
    selection = select_by_profile(columns, targets.tolist(), seed)
    images = set(columns.image_ids[selection].tolist())
    content = {key: value for key, value in dataset.items() if key != "annotations"}
    content["images"] = [image for image in dataset["images"] if image["id"] in images]
    parameters = {"zipf": {"exponent": exponent}, "exponential": {"factor": factor}}
    content["info"] = {
        **(dataset.get("info") or {}),
        "long_tail": {"profile": profile, **parameters.get(profile, {}), "seed": seed},
    }
    return content, [entries[row] for row in np.flatnonzero(selection)]
