"""Detections as columns: what a model found, from the inference loop to the metric."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import reduce

import numpy as np

from ..data.annotation_schema import MAX_SIDE, is_number, shown
from ..errors import UserError, reason
from .masks import RunLengthMasks
from .protocol import Protocol

_RESULTS_AT_ONCE = 1 << 16
_CHARACTERS_AT_ONCE = 1 << 22
_MAX_CHARACTERS_OF_A_RESULT = 1 << 25
PASS_EVALUATED = "pass the detections.npz of an evaluation"
SAVE_AGAIN = "it may be incomplete, save it again"
NUMBERS = ("image_id", "category_id", "score")
"""What every entry of a results file has, beside a box or a mask."""


@dataclass(frozen=True)
class Kept:
    """
    Which detections were set aside before these were kept, so that no metric asks for them later.

    Args:
        max_dets_per_image: cap per image that was applied, None for none.
        max_dets_per_category: cap over the whole set that was applied, None for none.
        verified_in: fingerprint of the annotations whose unverified categories were left out, "" if
            they were not.
        dropped: how many detections each rule set aside.
    """

    max_dets_per_image: int | None = None
    max_dets_per_category: int | None = None
    verified_in: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Kept") -> "Kept":
        """Of two parts, kept by the same rules."""
        dropped = Counter(self.dropped)
        dropped.update(other.dropped)
        return replace(self, dropped=dict(dropped))

    def check(self, protocol: Protocol, fingerprint: str) -> None:
        """
        Tells whether a metric has all the detections that it asks for.

        Args:
            protocol: of the metric.
            fingerprint: of the annotations.

        Raises:
            UserError: some of them were set aside.
        """
        again = "run inference again with the caps and the annotations of this evaluation"
        if self.verified_in not in ("", fingerprint):
            raise UserError(
                "these detections were kept for other annotations, where other categories are "
                f"verified: {again}, or keep all with LONG_TAIL.EVAL.KEEP_UNVERIFIED True"
            )
        for what, had, asked in (
            ("image", self.max_dets_per_image, protocol.max_dets_per_image),
            ("category", self.max_dets_per_category, protocol.max_dets_per_category),
        ):
            lacks_some = had is not None and (asked is None or asked > had)
            # Under another cap, unverified detections would have taken some of the places.
            lacks_unverified = bool(self.verified_in) and asked is not None and asked != had
            if lacks_some or lacks_unverified:
                kept = "all" if had is None else f"the best {had:,}"
                wanted = "all" if asked is None else f"the best {asked:,}"
                verified = " in verified categories" if self.verified_in else ""
                raise UserError(
                    f"these detections are {kept} per {what}{verified}, the metric asks for "
                    f"{wanted}: {again}"
                )


@dataclass(frozen=True)
class Detections:
    """
    N detections of any number of images.

    Detections of an image keep the order in which the model gave them; ties between scores are
    resolved by it.

    Args:
        image_ids: (N,) int64, ids of the annotation file.
        category_ids: (N,) int64 or smaller, ids of the annotation file.
        scores: (N,) float.
        boxes: (N, 4) float, x, y, width, height.
        masks: N masks, or None.
        kept: what had been set aside before.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: RunLengthMasks | None = None
    kept: Kept = Kept()

    def __post_init__(self):
        rows = {"category_ids": self.category_ids, "scores": self.scores, "boxes": self.boxes}
        if self.masks is not None:
            rows["masks"] = self.masks
        for name, column in rows.items():
            if len(column) != len(self):
                raise ValueError(
                    f"expected {name} for each of {len(self)} detections, got {len(column)}"
                )
        if self.boxes.shape[1:] != (4,):
            raise ValueError(f"expected boxes of shape (N, 4), got {self.boxes.shape}")

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def empty(cls) -> "Detections":
        """No detections."""
        return cls(
            image_ids=np.zeros(0, np.int64),
            category_ids=np.zeros(0, np.int32),
            scores=np.zeros(0, np.float32),
            boxes=np.zeros((0, 4), np.float32),
        )

    @classmethod
    def from_results(cls, results: Sequence[Mapping], first: int = 0) -> "Detections":
        """
        Reads the entries of a results file: `image_id`, `category_id`, `score`, `bbox` and, when
        the first entry has one, a compressed `segmentation`.

        Args:
            results: the entries.
            first: number of the first one in its file, for messages.

        Raises:
            UserError: an entry lacks a key, or has another value than it should.
        """
        if not results:
            return cls.empty()
        _check_keys(results, first)
        try:
            found = cls._from_checked(results)
        except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
            problem = _first_problem(results, first) or f"{reason(error)}: {SAVE_AGAIN}"
            raise UserError(problem) from error
        if found.masks is not None and not (valid := found.masks.are_valid()).all():
            row = int(valid.argmin())
            height, width = found.masks.sizes[row].tolist()
            raise UserError(
                f"expected run lengths of {height} x {width} pixels in result {first + row}, "
                "found others: the file is damaged or its sizes are swapped; write masks as "
                "COCO's compressed RLE"
            )
        if "bbox" not in results[0]:
            found = replace(found, boxes=found.masks.boxes())
        return found

    @classmethod
    def _from_checked(cls, results: Sequence[Mapping]) -> "Detections":
        """Boxes are zeros where the results have masks only."""
        columns = {key: np.array([entry[key] for entry in results]) for key in NUMBERS}
        if any(columns[key].dtype.kind != "i" for key in ("image_id", "category_id")):
            raise TypeError("ids are integers")
        if columns["score"].dtype.kind not in "if":
            raise TypeError("scores are numbers")
        masks, boxes = None, np.zeros((len(results), 4))
        if "segmentation" in results[0]:
            masks = RunLengthMasks.from_rles([entry["segmentation"] for entry in results])
        if "bbox" in results[0]:
            boxes = np.array([entry["bbox"] for entry in results], dtype=np.float64)
        return cls(
            image_ids=columns["image_id"].astype(np.int64),
            category_ids=columns["category_id"].astype(np.int64),
            scores=columns["score"].astype(np.float64),
            boxes=boxes,
            masks=masks,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Detections"]) -> "Detections":
        """
        Joins detections in the given order; parts without detections may lack masks.

        Raises:
            ValueError: some parts have masks and others do not.
        """
        kept = reduce(Kept.__add__, [part.kept for part in parts]) if parts else Kept()
        parts = [part for part in parts if len(part)]
        if not parts:
            return replace(cls.empty(), kept=kept)
        if len(parts) == 1:
            return replace(parts[0], kept=kept)
        with_masks = sum(part.masks is not None for part in parts)
        if with_masks not in (0, len(parts)):
            raise ValueError(
                f"expected masks for all images or for none, got them for {with_masks} of "
                f"{len(parts)}: evaluate one model at a time"
            )
        return cls(
            image_ids=np.concatenate([part.image_ids for part in parts]),
            category_ids=np.concatenate([part.category_ids for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            boxes=np.concatenate([part.boxes for part in parts]),
            masks=RunLengthMasks.concatenate([part.masks for part in parts])
            if with_masks
            else None,
            kept=kept,
        )

    def take(self, rows: np.ndarray | slice) -> "Detections":
        """The detections at `rows`."""
        return Detections(
            image_ids=self.image_ids[rows],
            category_ids=self.category_ids[rows],
            scores=self.scores[rows],
            boxes=self.boxes[rows],
            masks=None if self.masks is None else self.masks.take(rows),
            kept=self.kept,
        )

    def with_dropped(self, dropped: Mapping[str, int]) -> "Detections":
        """The same, noting that more have been set aside."""
        return replace(self, kept=self.kept + Kept(dropped=dropped))

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that hold everything, for files and for sending."""
        columns = {
            "image_ids": self.image_ids,
            "category_ids": self.category_ids,
            "scores": self.scores,
            "boxes": self.boxes,
            "kept": np.array(json.dumps(asdict(self.kept))),
        }
        if self.masks is not None:
            columns |= {f"mask_{name}": array for name, array in self.masks.columns().items()}
        return columns

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray]) -> "Detections":
        """The inverse of `columns`."""
        masks = None
        if "mask_counts" in columns:
            masks = RunLengthMasks.from_columns(
                {name: columns[f"mask_{name}"] for name in ("counts", "lengths", "sizes")}
            )
        return cls(
            image_ids=columns["image_ids"],
            category_ids=columns["category_ids"],
            scores=columns["scores"],
            boxes=columns["boxes"],
            masks=masks,
            kept=Kept(**json.loads(columns["kept"].item())) if "kept" in columns else Kept(),
        )

    @classmethod
    def load(cls, path: str) -> "Detections":
        """
        Reads `detections.npz` as the evaluator writes it, or a JSON file of results.

        Raises:
            UserError: no such file, or another one.
        """
        try:
            if path.endswith(".json"):
                with open(path, encoding="utf-8") as file:
                    parts = enumerate(_results(file))
                    return cls.concatenate(
                        [cls.from_results(part, n * _RESULTS_AT_ONCE) for n, part in parts]
                    )
            if os.path.isfile(path) and not zipfile.is_zipfile(path):
                raise UserError(f"it is cut short or no archive of NumPy: {PASS_EVALUATED}")
            with np.load(path, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            _check_columns(columns)
            detections = cls.from_columns(columns)
            if detections.masks is not None:
                detections.masks.check()
            return detections
        except FileNotFoundError:
            raise UserError(
                f"expected saved detections at {path}, found no such file: an evaluation writes "
                "them to detections.npz in its inference folder"
            ) from None
        except Exception as error:  # a damaged archive fails in many ways
            what = str(error) if isinstance(error, UserError) else f"{reason(error)}: {SAVE_AGAIN}"
            raise UserError(f"expected saved detections in {path}: {what}") from error

    def results(self) -> Iterator[dict]:
        """The entries of a results file in COCO's format, as evaluation servers take them."""
        rles = None if self.masks is None else self.masks.rles()
        rows = zip(
            self.image_ids.tolist(),
            self.category_ids.tolist(),
            self.scores.tolist(),
            self.boxes.tolist(),
        )
        for row, (image_id, category_id, score, box) in enumerate(rows):
            entry = {"image_id": image_id, "category_id": category_id, "score": score, "bbox": box}
            if rles is not None:
                entry["segmentation"] = {**rles[row], "counts": rles[row]["counts"].decode()}
            yield entry


COLUMNS = {
    "image_ids": (np.integer, ()),
    "category_ids": (np.integer, ()),
    "scores": (np.floating, ()),
    "boxes": (np.floating, (4,)),
    "mask_lengths": (np.integer, ()),
    "mask_sizes": (np.integer, (2,)),
}
"""Types of the arrays in a detections.npz, and shapes of their rows; masks may be absent."""


def _check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Tell what is wrong with the arrays of a file, which may hold anything, in a UserError."""
    with_masks = any(name.startswith("mask_") for name in columns)
    names = [name for name in COLUMNS if with_masks or not name.startswith("mask_")]
    missing = [n for n in (*names, *["mask_counts"] * with_masks) if n not in columns]
    if missing:
        raise UserError(f"it lacks {missing} and has {list(columns)}: {PASS_EVALUATED}")
    for name in names:
        kind, shape = COLUMNS[name]
        _check_column(name, columns[name], kind, (columns["image_ids"].size, *shape))
    if with_masks:
        lengths = columns["mask_lengths"].clip(min=0)  # which is another sum if one is below 0
        _check_column("mask_counts", columns["mask_counts"], np.uint8, (int(lengths.sum()),))
    if "kept" in columns:
        _check_kept(columns["kept"])


def _check_column(name: str, column: np.ndarray, kind: type, shape: tuple[int, ...]) -> None:
    if not np.issubdtype(column.dtype, kind) or column.shape != shape:
        raise UserError(
            f"it has {name} of the type {column.dtype} and shape {column.shape}, expected "
            f"{kind.__name__} and {shape}: {PASS_EVALUATED}"
        )


def _check_kept(column: np.ndarray) -> None:
    known = [entry.name for entry in fields(Kept)]
    try:
        found = json.loads(str(column.item()))
        valid = isinstance(found, dict) and set(found) <= set(known)
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"it has kept with others than {known}: {PASS_EVALUATED}")


def _first_problem(results: Sequence[Mapping], first: int) -> str | None:
    """What is wrong with the first result that cannot be read."""
    for number, entry in enumerate(results, first):
        for key in NUMBERS:
            value = entry[key]
            if not is_number(value) or (key != "score" and not isinstance(value, int)):
                kind = "a number" if key == "score" else "an integer"
                return f"result {number} has {key} {shown(value)}, expected {kind}: correct it"
        box = entry.get("bbox", [0, 0, 0, 0])
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return (
                f"result {number} has bbox {shown(box)}, expected four finite numbers (x, y, "
                "width, height): correct it"
            )
        mask = entry.get("segmentation", {})
        if "segmentation" in entry and not (
            isinstance(mask, dict)
            and isinstance(mask.get("size"), list)
            and len(mask["size"]) == 2
            and all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in mask["size"])
            and isinstance(mask.get("counts"), str | bytes)
            and mask["counts"].isascii()
        ):
            return (
                f"result {number} has segmentation {shown(mask)}, expected COCO's compressed RLE "
                "(size and counts): encode it"
            )
    return None


def _check_keys(results: Sequence[Mapping], first: int) -> None:
    if not {"bbox", "segmentation"} & results[0].keys():
        raise UserError(
            f"result {first} has neither 'bbox' nor 'segmentation', only {sorted(results[0])}: "
            "write results in the COCO format"
        )
    expected = set(NUMBERS) | ({"bbox", "segmentation"} & results[0].keys())
    for number, entry in enumerate(results, first):
        if not expected <= entry.keys():
            raise UserError(
                f"result {number} lacks {sorted(expected - entry.keys())}: write every result in "
                "the COCO format"
            )


def _results(file) -> Iterator[list[dict]]:
    """
    The entries of a results file in parts; as one list of dicts those of LVIS fill 6 GB.

    Raises:
        UserError: it is not a list of objects.
    """
    decoder = json.JSONDecoder()
    text, position, part, number = file.read(_CHARACTERS_AT_ONCE).lstrip(), 1, [], 0
    if not text.startswith("["):
        raise UserError(
            f"a results file is a JSON list, this one starts with {text[:20]!r}: pass another"
        )
    while True:
        while position < len(text) and text[position] in " ,\n\r\t":
            position += 1
        if text[position : position + 1] == "]":
            break
        try:
            entry, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if len(text) - position > _MAX_CHARACTERS_OF_A_RESULT:
                raise UserError(f"it is no JSON ({reason(error)}): {SAVE_AGAIN}") from None
            more = file.read(_CHARACTERS_AT_ONCE)
            if not more:
                raise UserError(
                    f"it ends or is damaged in or after result {number - 1}: {SAVE_AGAIN}"
                    if number
                    else f"it ends or is damaged in its first result: {SAVE_AGAIN}"
                ) from None
            text, position = text[position:] + more, 0
            continue
        if not isinstance(entry, dict):
            raise UserError(f"result {number} is {shown(entry)}, expected an object: remove it")
        part.append(entry)
        number += 1
        if len(part) == _RESULTS_AT_ONCE:
            yield part
            part = []
    yield part
