"""A small imbalanced data set as somebody would bring it: COCO format, odd ids, spaces in names."""

import json
import shutil
import tempfile
from pathlib import Path

from .generation import generate
from .profiles import Profile

EXAMPLE = Profile(
    name="example",
    num_classes=7,
    image_size=96,
    num_train=180,
    num_val=60,
    val_images_per_class=12,
    head_cap=110,
    object_size=(14.0, 34.0),
)
FIRST_ID, ID_STEP = 3, 10
"""Category ids are 3, 13, 23, ...: neither from 1 nor without gaps."""

MARK = "Nº{} {}"
"""Names of classes, with a letter outside ASCII and a space."""


def write_example(folder: str | Path, seed: int = 0) -> tuple[Path, Path]:
    """
    Writes `train.json`, `val.json` and `images/` into a folder.

    Returns:
        the two annotation files.

    Raises:
        FileExistsError: one of them is there already.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    for name in ("train.json", "val.json", "images"):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} is there already")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = generate(EXAMPLE, temporary, seed=seed)
        (folder / "images").mkdir()
        files = []
        for split in ("train", "val"):
            shutil.move(made / split, folder / "images" / split)
            lvis = json.loads((made / "annotations" / f"{split}.json").read_bytes())
            files.append(folder / f"{split}.json")
            text = json.dumps(_as_coco(lvis), ensure_ascii=False)
            files[-1].write_text(text, encoding="utf-8")
    return files[0], files[1]


def _as_coco(lvis: dict) -> dict:
    def category_id(lvis_id: int) -> int:
        return FIRST_ID + ID_STEP * (lvis_id - 1)

    return {
        "images": [
            {key: image[key] for key in ("id", "file_name", "width", "height")}
            for image in lvis["images"]
        ],
        "annotations": [
            {**entry, "category_id": category_id(entry["category_id"]), "iscrowd": 0}
            for entry in lvis["annotations"]
        ],
        "categories": [
            {
                "id": category_id(category["id"]),
                "name": MARK.format(category["id"], category["name"].replace("_", " ")),
            }
            for category in lvis["categories"]
        ],
    }
