"""
Says which data sets are there, what is missing, and where to get it.

    python datasets/check.py                  # all of them
    python datasets/check.py coco lvis-v1     # fails unless these are complete
    python datasets/check.py --deep lvis-v1   # also reads the annotations and counts

Folders of images are counted; annotation files are looked at from both ends, which shows a download
that was cut short. --deep takes minutes and as much memory as loading the annotations does.
"""

import argparse
import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .datasets.coco_lt import COCO_TRAIN_JSON, COCO_VAL_JSON, coco_lt_json
from .synthetic import PROFILES, datasets_root

OK, MISSING, WRONG = "ok", "missing", "wrong"
COCO_PAGE = "https://cocodataset.org/#download"
LVIS_PAGE = "https://www.lvisdataset.org/dataset"
OPEN_IMAGES_PAGE = "https://storage.googleapis.com/openimages/web/challenge2019.html"
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Item:
    """
    One thing that a data set needs.

    Args:
        path: relative to the root of all data sets; ends with / for a folder of images.
        source: where it comes from.
        counts: images of a folder, or entries of an annotation file, where they are known.
        columns: that a CSV must have.
        optional: the data set works without.
    """

    path: str
    source: str
    counts: Mapping[str, int] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    optional: bool = False


def _coco_images(split: str, count: int) -> Item:
    return Item(f"coco/{split}/", COCO_PAGE, {"images": count})


def _lvis(file: str, counts: Mapping[str, int], *, optional: bool = False) -> Item:
    return Item(f"lvis/{file}", LVIS_PAGE, counts, optional=optional)


def _coco_lt(construction: str, counts: Mapping[str, int]) -> Item:
    command = f"python datasets/prepare_coco_lt.py {construction}"
    return Item(coco_lt_json(construction), command, {**counts, "categories": 80})


def _open_images(file: str, *columns: str, **options: object) -> Item:
    return Item(f"openimages/annotations/{file}", OPEN_IMAGES_PAGE, columns=columns, **options)


COCO_IMAGES = (_coco_images("train2017", 118287), _coco_images("val2017", 5000))
COCO_VAL = Item(COCO_VAL_JSON, COCO_PAGE, {"images": 5000, "annotations": 36781, "categories": 80})
BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")

DATASETS: dict[str, tuple[Item, ...]] = {
    "coco": (
        *COCO_IMAGES,
        Item(
            COCO_TRAIN_JSON,
            COCO_PAGE,
            {"images": 118287, "annotations": 860001, "categories": 80},
        ),
        COCO_VAL,
    ),
    "lvis-v1": (
        *COCO_IMAGES,
        _lvis(
            "lvis_v1_train.json",
            {"images": 100170, "annotations": 1270141, "categories": 1203},
        ),
        _lvis("lvis_v1_val.json", {"images": 19809, "annotations": 244707, "categories": 1203}),
        _lvis("lvis_v1_image_info_test_dev.json", {"images": 19822}, optional=True),
        _lvis("lvis_v1_image_info_test_challenge.json", {"images": 19822}, optional=True),
    ),
    "lvis-v0.5": (
        *COCO_IMAGES,
        _lvis("lvis_v0.5_train.json", {"annotations": 693958, "categories": 1230}),
        _lvis("lvis_v0.5_val.json", {"images": 5000, "categories": 1230}),
        _lvis("lvis_v0.5_image_info_test.json", {}, optional=True),
    ),
    "coco-lt-bags": (*COCO_IMAGES, _coco_lt("bags", {"annotations": 64504}), COCO_VAL),
    "coco-lt-simcal": (
        *COCO_IMAGES,
        _coco_lt("simcal", {"images": 99411, "annotations": 666493}),
        COCO_VAL,
    ),
    "openimages": (
        Item("openimages/train/", OPEN_IMAGES_PAGE),
        Item("openimages/validation/", OPEN_IMAGES_PAGE),
        _open_images("challenge-2019-classes-description-500.csv", counts={"rows": 500}),
        _open_images("challenge-2019-label500-hierarchy.json"),
        _open_images(
            "challenge-2019-train-detection-bbox.csv", *BOX_COLUMNS, counts={"rows": 12195144}
        ),
        _open_images("challenge-2019-validation-detection-bbox.csv", *BOX_COLUMNS),
        _open_images(
            "challenge-2019-train-detection-human-imagelabels.csv", *LABEL_COLUMNS, optional=True
        ),
        _open_images("challenge-2019-validation-detection-human-imagelabels.csv", *LABEL_COLUMNS),
        *(
            Item(
                f"openimages/annotations/{part}-image-sizes.csv",
                f"python datasets/prepare_open_images.py {split}",
                columns=("ImageID", "Width", "Height"),
                optional=True,
            )
            for split, part in (("train", "train"), ("val", "validation"))
        ),
    ),
    "synthlt": tuple(
        Item(
            f"synthlt/{name}/synthlt.json",
            f"python -m lt_detectron2.data.synthetic --profile {name}; made when needed",
            optional=True,
        )
        for name in PROFILES
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report. Returns 1 where something is wrong, or missing and asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="*", metavar="dataset", help=", ".join(DATASETS))
    parser.add_argument("--deep", action="store_true", help="read annotations and count")
    parser.add_argument(
        "--root", help="of all data sets (default: $DETECTRON2_DATASETS, else datasets)"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.datasets if name not in DATASETS]
    if unknown:
        parser.error(f"no data set {unknown[0]!r}; there are {', '.join(DATASETS)}")
    root = Path(options.root) if options.root else datasets_root()
    print(f"Data sets under {root.resolve()}")
    if not root.is_dir():
        print("There is no such folder: set DETECTRON2_DATASETS to the one that holds yours.")

    failed = False
    checked: dict[str, tuple[str, str]] = {}  # COCO's images belong to several data sets
    for name in options.datasets or DATASETS:
        items = DATASETS[name]
        for item in items:
            if item.path not in checked:
                checked[item.path] = check(item, root, deep=options.deep)
        states = {checked[item.path][0] for item in items if not item.optional}
        failed |= WRONG in {checked[item.path][0] for item in items}
        failed |= bool(options.datasets) and MISSING in states
        print(f"\n{name}: {_verdict(states)}")
        for item in items:
            state, text = checked[item.path]
            if state == MISSING and item.optional:
                state = "(missing)"
            print(f"  {state:9} {item.path}" + (f"  {text}" if text else ""))
            if state != OK:
                print(f"  {'':9} from {item.source}")
    return int(failed)


def verdicts(root: Path) -> dict[str, str]:
    """In a few words, how much of each data set lies under a root."""
    return {
        name: _verdict({check(item, root, deep=False)[0] for item in items if not item.optional})
        for name, items in DATASETS.items()
    }


def _verdict(states: set[str]) -> str:
    if WRONG in states:
        return "damaged"
    if not states:
        return "nothing is required"
    if MISSING in states:
        return "nothing is there" if states == {MISSING} else "incomplete"
    return "complete"


def check(item: Item, root: Path, *, deep: bool) -> tuple[str, str]:
    """The state of an item, and a few words about it."""
    path = root / item.path
    try:
        if item.path.endswith("/"):
            return _check_images(path, item.counts.get("images"))
        if not path.is_file():
            return MISSING, ""
        text = f"{path.stat().st_size / 1e6:,.1f} MB"
        problem = (_json_problem if path.suffix == ".json" else _csv_problem)(path, item)
        if problem or not deep:
            return (WRONG, problem) if problem else (OK, text)
        return _compare_counts(item, _count(path), text)
    except (OSError, ValueError) as error:
        return WRONG, f"cannot be read: {error}"


def _check_images(folder: Path, expected: int | None) -> tuple[str, str]:
    # Open Images is distributed as sixteen folders, by the first letter of the names.
    parts = [folder] if folder.is_dir() else sorted(folder.parent.glob(f"{folder.name}_[0-9a-f]"))
    if not parts:
        return MISSING, ""
    count = sum(entry.name.endswith(".jpg") for part in parts for entry in os.scandir(part))
    if not count:
        return MISSING, "the folder is empty"
    if expected and count < expected:
        return WRONG, f"{count:,} of {expected:,} images"
    return OK, f"{count:,} images"


def _json_problem(path: Path, item: Item) -> str:
    with open(path, "rb") as file:
        first = file.read(TAIL_BYTES).lstrip()[:1]
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        last = file.read().rstrip()[-1:]
    if first != b"{":
        return "does not begin like a JSON object; is it an error page?"
    return "" if last == b"}" else "ends in the middle; download it again"


def _csv_problem(path: Path, item: Item) -> str:
    with open(path, "rb") as file:
        first = file.readline().decode()
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        last = file.read().decode().splitlines()[-1:]
    names = next(csv.reader([first]), [])
    if not names:
        return "is empty; download it again"
    missing = [name for name in item.columns if name not in names]
    if missing:
        return f"has no column {missing[0]}; is it another file?"
    if len(next(csv.reader(last), [])) != len(names):
        return "ends in the middle of a line; download it again"
    return ""


def _count(path: Path) -> dict[str, int]:
    if path.suffix == ".json":
        dataset = json.loads(path.read_bytes())
        return {key: len(value) for key, value in dataset.items() if isinstance(value, list)}
    with open(path, "rb") as file:
        lines = sum(block.count(b"\n") for block in _blocks(file.read))
    has_names = "class" not in path.name
    return {"rows": lines - has_names}


def _blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while block := read(1 << 22):
        yield block


def _compare_counts(item: Item, counts: Mapping[str, int], text: str) -> tuple[str, str]:
    for key, expected in item.counts.items():
        if counts.get(key, 0) != expected:
            return WRONG, f"{counts.get(key, 0):,} {key}, expected {expected:,}"
    shown = [f"{counts[key]:,} {key}" for key in item.counts] or [text]
    return OK, ", ".join(shown)
