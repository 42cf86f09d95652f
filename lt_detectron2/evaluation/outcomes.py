"""What became of every detection, small enough to keep: the input of bootstrap and comparison."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, reason
from .ground_truth import GroundTruth
from .groups import CategoryGroups
from .matching import Matches


@dataclass(frozen=True)
class Outcomes:
    """
    Match bits over objects of all sizes, 13 bytes a detection.

    Rows are as in `Matches`: by category, then falling score. A detection that is neither right nor
    wrong at a threshold is ignored there.

    Args:
        protocol: what the caps and thresholds were, as text.
        fingerprint: of the annotations.
        iou_thresholds: (T,) float64, T <= 16.
        num_recalls: R, thresholds from 0 to 1 at which precision is read; 0 reads it everywhere
            (the area under the curve).
        num_images: I.
        offsets: (K + 1,) int64, the rows of each category.
        image: (N,) int32.
        scores: (N,) float.
        right: (N,) uint16, bit t is set for a true positive at threshold t.
        wrong: (N,) uint16, bit t is set for a false positive at threshold t.
        annotation_image: (G',) int32, image of each annotation that counts.
        annotation_category: (G',) int32, its category.
        partitions: groups of the categories.
    """

    protocol: str
    fingerprint: str
    iou_thresholds: np.ndarray
    num_recalls: int
    num_images: int
    offsets: np.ndarray
    image: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    annotation_image: np.ndarray
    annotation_category: np.ndarray
    partitions: tuple[CategoryGroups, ...] = ()

    @property
    def num_categories(self) -> int:
        return len(self.offsets) - 1

    def annotation_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Two (K,): images with annotations that count of each category, and these annotations."""
        category = self.annotation_category.astype(np.int64)
        cells = np.unique(category * self.num_images + self.annotation_image)
        images = np.bincount(cells // max(self.num_images, 1), minlength=self.num_categories)
        return images, np.bincount(category, minlength=self.num_categories)

    @classmethod
    def from_matches(
        cls, ground_truth: GroundTruth, matches: Matches, *partitions: CategoryGroups | None
    ) -> "Outcomes":
        """Packs the first area range, which holds all objects."""
        thresholds = np.array(matches.protocol.iou_thresholds)
        bits = (1 << np.arange(len(thresholds))).astype(np.uint16)
        errs = matches.errs_unmatched[:, 0]
        right = np.zeros(len(errs), dtype=np.uint16)
        right[matches.candidates] = (matches.right[:, :, 0] * bits).sum(axis=1)
        matched = np.zeros(len(errs), dtype=np.uint16)
        matched[matches.candidates] = (matches.matched[:, :, 0] * bits).sum(axis=1)
        counted = ~ground_truth.ignored
        return cls(
            protocol=matches.protocol.describe(),
            fingerprint=ground_truth.fingerprint,
            iou_thresholds=thresholds,
            num_recalls=len(matches.protocol.recall_thresholds),
            num_images=ground_truth.num_images,
            offsets=matches.offsets,
            image=matches.image.astype(np.int32),
            scores=matches.scores,
            right=right,
            wrong=np.where(errs, ~matched & bits.sum(dtype=np.uint16), 0).astype(np.uint16),
            annotation_image=ground_truth.image[counted].astype(np.int32),
            annotation_category=ground_truth.category[counted].astype(np.int32),
            partitions=tuple(groups for groups in partitions if groups is not None),
        )

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that hold everything, for a file."""
        columns = {name: np.asarray(getattr(self, name)) for name in _FIELDS}
        for number, groups in enumerate(self.partitions):
            columns[f"group_names_{number}"] = np.array(groups.names)
            columns[f"group_index_{number}"] = groups.index.astype(np.int16)
            columns[f"group_origin_{number}"] = np.array([groups.source, groups.rule])
        return columns

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray]) -> "Outcomes":
        """The inverse of `columns`."""
        values = {name: columns[name] for name in _FIELDS}
        values |= {name: values[name].item() for name in _SCALARS}
        partitions = []
        while f"group_names_{len(partitions)}" in columns:
            number = len(partitions)
            partitions.append(
                CategoryGroups(
                    tuple(columns[f"group_names_{number}"].tolist()),
                    columns[f"group_index_{number}"].astype(np.int64),
                    *columns[f"group_origin_{number}"].tolist(),
                )
            )
        return cls(**values, partitions=tuple(partitions))

    @classmethod
    def load(cls, path: str) -> "Outcomes":
        """
        Reads `outcomes_<task>.npz` as an evaluator writes it.

        Raises:
            UserError: no such file, or another one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls.from_columns({name: file[name] for name in file.files})
        except FileNotFoundError:
            raise UserError(
                f"expected the outcomes of an evaluation at {path}, found no such file: evaluate "
                "the run first, train_net.py --eval-only does"
            ) from None
        except Exception as error:  # a damaged archive fails in many ways
            raise UserError(
                f"expected the outcomes of an evaluation in {path}, it is damaged or holds "
                f"something else ({reason(error)}): pass a file outcomes_<task>.npz, or evaluate "
                "the run again"
            ) from error


_SCALARS = ("protocol", "fingerprint", "num_recalls", "num_images")
_FIELDS = (
    *_SCALARS,
    "iou_thresholds",
    "offsets",
    "image",
    "scores",
    "right",
    "wrong",
    "annotation_image",
    "annotation_category",
)
