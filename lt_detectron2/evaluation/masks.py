"""Masks as run lengths in flat columns, and the few operations that a metric needs on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as coco_mask

from ..data import run_lengths
from ..errors import UserError

# pycocotools 2.0.11 overflows in `area` under NumPy 2 when it gets more masks than this at once.
_MASKS_PER_CALL = 255
_MASKS_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class RunLengthMasks:
    """
    N masks, each a slice of one byte array in COCO's compressed run-length code.

    Selecting masks copies no run lengths; `compact` does, before saving or sending.

    Args:
        counts: (B,) uint8, the codes, in any order.
        starts: (N,) int64, where the code of each mask begins.
        lengths: (N,) int64, the bytes of each code.
        sizes: (N, 2) int32, height and width of the image of each mask.
    """

    counts: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def empty(cls) -> "RunLengthMasks":
        """No masks."""
        return cls.from_rles([])

    @classmethod
    def from_rles(cls, rles: Sequence[dict]) -> "RunLengthMasks":
        """Collects masks from COCO dicts `{"size": [height, width], "counts": bytes or str}`."""
        codes = [
            rle["counts"].encode("ascii") if isinstance(rle["counts"], str) else rle["counts"]
            for rle in rles
        ]
        lengths = np.array([len(code) for code in codes], dtype=np.int64)
        return cls(
            counts=np.frombuffer(b"".join(codes), dtype=np.uint8),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            sizes=np.array([rle["size"] for rle in rles], dtype=np.int32).reshape(-1, 2),
        )

    @classmethod
    def from_segmentations(
        cls, segmentations: Sequence[list | dict], sizes: np.ndarray
    ) -> "RunLengthMasks":
        """
        Rasterises annotations as COCO does: polygons, uncompressed or compressed run lengths.

        Args:
            segmentations: N entries of an annotation file.
            sizes: (N, 2), height and width of the image of each.
        """
        return cls.from_rles(
            [_to_rle(entry, int(h), int(w)) for entry, (h, w) in zip(segmentations, sizes)]
        )

    @classmethod
    def encode(cls, masks: np.ndarray) -> "RunLengthMasks":
        """
        Encodes binary masks.

        The code runs down the columns while arrays lie in rows. Turning a whole image around costs
        more than encoding it, so only the columns that a mask touches are copied.

        Args:
            masks: (N, height, width) bool or uint8.
        """
        masks = masks.view(np.uint8) if masks.dtype == bool else masks
        _, height, width = masks.shape
        canvas = np.zeros((height, width, 1), dtype=np.uint8, order="F")
        rles = []
        for mask, columns in zip(masks, masks.any(axis=1)):
            touched = np.flatnonzero(columns)
            span = slice(touched[0], touched[-1] + 1) if len(touched) else slice(0, 0)
            canvas[:, span, 0] = mask[:, span]
            rles.extend(coco_mask.encode(canvas))
            canvas[:, span] = 0
        return cls.from_rles(rles)

    @classmethod
    def from_windows(
        cls, bits: np.ndarray, windows: np.ndarray, sizes: np.ndarray
    ) -> "RunLengthMasks":
        """Encodes masks that are zero outside a window; see `run_lengths.from_windows`."""
        return cls.from_runs(*run_lengths.from_windows(bits, windows, sizes), sizes)

    @classmethod
    def from_runs(
        cls, runs: np.ndarray, num_runs: np.ndarray, sizes: np.ndarray
    ) -> "RunLengthMasks":
        """Encodes the runs that `run_lengths.from_windows` or `from_edges` found."""
        codes, lengths = run_lengths.encode(runs, num_runs)
        return cls(codes, np.cumsum(lengths) - lengths, lengths, sizes.astype(np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence["RunLengthMasks"]) -> "RunLengthMasks":
        """Joins masks in the given order."""
        if not parts:
            return cls.empty()
        shifts = np.cumsum([0] + [len(part.counts) for part in parts[:-1]])
        return cls(
            counts=np.concatenate([part.counts for part in parts]),
            starts=np.concatenate([part.starts + shift for part, shift in zip(parts, shifts)]),
            lengths=np.concatenate([part.lengths for part in parts]),
            sizes=np.concatenate([part.sizes for part in parts]),
        )

    def take(self, rows: np.ndarray | slice) -> "RunLengthMasks":
        """The masks at `rows`, sharing the codes."""
        return RunLengthMasks(self.counts, self.starts[rows], self.lengths[rows], self.sizes[rows])

    def spread(self, rows: np.ndarray, number: int) -> "RunLengthMasks":
        """
        The masks at `rows` of `number` places; the others hold codes of no length, which are no
        masks and may not be measured.
        """
        starts, lengths = np.zeros(number, np.int64), np.zeros(number, np.int64)
        sizes = np.zeros((number, 2), np.int32)
        starts[rows], lengths[rows], sizes[rows] = self.starts, self.lengths, self.sizes
        return RunLengthMasks(self.counts, starts, lengths, sizes)

    def compact(self) -> "RunLengthMasks":
        """The same masks with their codes in order and nothing between them."""
        begins = np.cumsum(self.lengths) - self.lengths
        first = self.starts[0] if len(self) else 0
        if np.array_equal(begins + first, self.starts):
            counts = self.counts[first : first + self.lengths.sum()]
            return RunLengthMasks(counts, begins, self.lengths, self.sizes)
        first, ends = self.starts.min(), self.starts + self.lengths
        buffer = self.counts[first : ends.max()].tobytes()
        spans = zip((self.starts - first).tolist(), (ends - first).tolist())
        codes = b"".join([buffer[start:end] for start, end in spans])
        return RunLengthMasks(
            np.frombuffer(codes, dtype=np.uint8), begins, self.lengths, self.sizes
        )

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that hold everything, for files and for sending."""
        masks = self.compact()
        lengths = masks.lengths.astype(np.int32)
        return {"counts": masks.counts, "lengths": lengths, "sizes": masks.sizes}

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray]) -> "RunLengthMasks":
        """The inverse of `columns`."""
        lengths = columns["lengths"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        return cls(columns["counts"], starts, lengths, columns["sizes"])

    def rles(self) -> list[dict]:
        """The masks as COCO dicts with `bytes` counts."""
        starts, ends = self.starts.tolist(), (self.starts + self.lengths).tolist()
        return [
            {"size": size, "counts": self.counts[start:end].tobytes()}
            for size, start, end in zip(self.sizes.tolist(), starts, ends)
        ]

    def areas(self) -> np.ndarray:
        """(N,) float64, the pixels of each mask."""
        return self._measure(_MASKS_PER_CALL, lambda part: coco_mask.area(part.rles()))

    def boxes(self) -> np.ndarray:
        """(N, 4) float64, the tight box of each mask."""
        return self._measure(_MASKS_PER_CALL, lambda part: coco_mask.toBbox(part.rles()), (0, 4))

    def are_valid(self) -> np.ndarray:
        """(N,) bool, which codes are complete and have as many pixels as their image."""
        return self._measure(_MASKS_AT_ONCE, _are_valid).astype(bool)

    def check(self) -> None:
        """
        Tells whether the codes, which may come from anywhere, can be worked with.

        Raises:
            UserError: a mask is not one of its image.
        """
        wrong = np.flatnonzero(~self.are_valid())
        if len(wrong):
            height, width = self.sizes[wrong[0]].tolist()
            raise UserError(
                f"expected run lengths of {height} x {width} pixels in mask {wrong[0]}, found "
                "others: the file is damaged or its sizes are swapped; write masks as COCO's "
                "compressed RLE"
            )

    def _measure(
        self, at_once: int, function: Callable, shape: tuple[int, ...] = (0,)
    ) -> np.ndarray:
        results = [np.zeros(shape)]
        for first in range(0, len(self), at_once):
            results.append(function(self.take(slice(first, first + at_once))))
        return np.concatenate(results).astype(np.float64)


def _are_valid(masks: RunLengthMasks) -> np.ndarray:
    part = masks.compact()
    num_pixels = part.sizes.astype(np.int64).prod(axis=1)
    return run_lengths.are_valid(part.counts, part.lengths, num_pixels)


def mask_pair_ious(
    detected: RunLengthMasks,
    annotated: RunLengthMasks,
    pairs: tuple[np.ndarray, np.ndarray],
    cells: np.ndarray,
    crowd: np.ndarray,
) -> np.ndarray:
    """
    IoU of pairs of masks.

    pycocotools compares all masks of a list with all of another, so it is called once a cell.

    Args:
        detected: the detections' masks.
        annotated: the annotations' masks.
        pairs: rows of `detected` and rows of `annotated`, each (P,).
        cells: (P,), the (image, category) cell of each pair.
        crowd: (number of annotations,) bool, those that are compared with the detection's area.

    Returns:
        (P,) float64.
    """
    ious = np.empty(len(cells))
    order = np.argsort(cells, kind="stable")
    bounds = np.append(np.flatnonzero(np.diff(cells[order], prepend=-1)), len(cells)).tolist()
    for first, last in zip(bounds[:-1], bounds[1:]):
        members = order[first:last]
        rows, row_of = np.unique(pairs[0][members], return_inverse=True)
        columns, column_of = np.unique(pairs[1][members], return_inverse=True)
        table = coco_mask.iou(
            detected.take(rows).rles(),
            annotated.take(columns).rles(),
            crowd[columns].astype(int).tolist(),
        )
        ious[members] = table[row_of, column_of]
    return ious


def _to_rle(segmentation: list | dict, height: int, width: int) -> dict:
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation
