"""Damaged and unusual images: read as they look, or named with what is wrong."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from hypothesis import strategies as st
from PIL import Image

from lt_detectron2.data.images import CheckedMapper
from lt_detectron2.errors import DatasetError

from .mutations import damaged, each_number, explore, works_or_is_explained

HEIGHT, WIDTH = 24, 32
RECORD = {"image_id": 7, "height": HEIGHT, "width": WIDTH}


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture():
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[:, WIDTH // 2 :] = 200, 100, 50
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def mapper():
    return CheckedMapper(DatasetMapper(is_train=False, augmentations=[], image_format="RGB"))


def pillow_reads(path):
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


def read(mapper, path):
    return mapper({**RECORD, "file_name": str(path)})["image"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"])
@each_number(6, 60)
def test_damaged_image(tmp_path, mapper, kind, number):
    """A damaged image is read, or one error names its file and id."""
    path = tmp_path / "image"

    def check(content):
        path.write_bytes(content)
        works_or_is_explained(lambda: read(mapper, path), str(path), "^image 7 ")

    explore(check, number, damaged(encoded(picture(), kind)))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"])
def test_modes_look_alike(tmp_path, mapper, mode):
    """Images of every colour mode of 8 bits give the same picture, as far as the mode can."""
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    path = tmp_path / f"image.{kind}"
    image = picture().quantize() if mode == "P" else picture().convert(mode)
    path.write_bytes(encoded(image, kind))
    if mode == "YCbCr" and not pillow_reads(path):  # 9 and 12.3
        pytest.skip("this Pillow cannot read the YCbCr files that it writes")
    pixels = read(mapper, path).float()
    expected = picture().convert("L") if mode in ("L", "LA", "1") else picture()
    expected = np.asarray(expected.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)
    tolerance = 140 if mode == "1" else 8  # one bit is dithered
    assert abs(pixels.numpy() - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_images_are_refused(tmp_path, mapper, mode):
    """Images of 16 bits and more, which would be clipped to white, are refused with a remedy."""
    path = tmp_path / "image.tiff"
    deep = Image.fromarray(np.full((HEIGHT, WIDTH), 30000, dtype=np.uint16))
    path.write_bytes(encoded(deep if mode == "I;16" else deep.convert(mode), "TIFF"))
    with pytest.raises(DatasetError, match="image 7 .*more than 8 bits .*convert it to 8"):
        read(mapper, path)


def test_rotated_by_exif(tmp_path, mapper):
    """An image that EXIF rotates is read upright; sizes of the file as stored are explained."""
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(picture().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif))
    upright = read(mapper, path).float().mean(dim=(0, 1))
    assert upright[: WIDTH // 2 - 2].max() < 20 and upright[WIDTH // 2 + 2 :].min() > 90
    path.write_bytes(encoded(picture(), "JPEG", exif=exif))
    with pytest.raises(DatasetError, match="image 7 .*32 x 24 pixels, which its EXIF orientation"):
        read(mapper, path)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist: check the folder of images"),
        (b"", "cannot be read: it is empty, damaged or no image"),
        (encoded(picture())[:60], "cannot be read .*it is damaged; get it again"),
        (encoded(picture().resize((8, 8))), "is 8 x 8 pixels, and 32 x 24 in the annotations"),
    ],
)
def test_unreadable_image_is_named(tmp_path, mapper, content, message):
    """A missing, empty, cut or mismatching image is named with its file, its id and a remedy."""
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as error:
        read(mapper, path)
    assert str(path) in str(error.value) and "image 7" in str(error.value)


@each_number(20, 200)
def test_odd_annotations_of_a_good_image(tmp_path, number):
    """Boxes and polygons anywhere are mapped to training inputs, or the image is named."""
    path = tmp_path / "image.png"
    path.write_bytes(encoded(picture()))
    train = CheckedMapper(
        DatasetMapper(is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True)
    )
    numbers = st.one_of(st.integers(-60, 60), st.floats(-1e5, 1e5))
    boxes = st.lists(numbers, min_size=4, max_size=4)
    polygons = st.lists(st.lists(numbers, max_size=9), max_size=2)

    def check(box, polygons):
        annotation = {"bbox": box, "bbox_mode": 1, "category_id": 0, "segmentation": polygons}
        record = {**RECORD, "file_name": str(path), "annotations": [annotation]}
        mapped = works_or_is_explained(
            lambda: train(record), str(path), "^image 7 .* has an annotation, number 0"
        )
        if mapped is not None:
            instances = mapped["instances"]
            found = instances.gt_boxes.tensor
            assert (found >= 0).all() and (found[:, 2] <= WIDTH).all()
            assert instances.gt_boxes.nonempty().all()

    explore(check, number, boxes, polygons)


def test_annotation_without_a_box_is_named(tmp_path):
    """As a loader of one's own may make it."""
    path = tmp_path / "image.png"
    path.write_bytes(encoded(picture()))
    train = CheckedMapper(DatasetMapper(is_train=True, augmentations=[], image_format="RGB"))
    annotation = {"bbox_mode": 1, "category_id": 0}
    with pytest.raises(DatasetError, match="image 7 .* number 0, with the box None .*: mend or"):
        train({**RECORD, "file_name": str(path), "annotations": [annotation]})


@pytest.mark.parametrize("num_annotations", [0, 2])
def test_config_is_not_blamed_on_annotations(tmp_path, num_annotations):
    """What fails for the image alone is no fault of its annotations."""
    path = tmp_path / "image.png"
    path.write_bytes(encoded(picture()))
    train = CheckedMapper(DatasetMapper(is_train=True, augmentations=[], image_format="BRG"))
    annotations = [{"bbox": [1, 1, 5, 5], "bbox_mode": 1, "category_id": 0}] * num_annotations
    with pytest.raises(DatasetError, match="image 7 .* cannot be mapped.*: check INPUT of the c"):
        train({**RECORD, "file_name": str(path), "annotations": annotations})


def test_annotations_are_not_excused_by_a_mapper_that_needs_them(tmp_path):
    """Boxes are made from masks here, so that an image without objects fails, too."""
    path = tmp_path / "image.png"
    path.write_bytes(encoded(picture()))
    kinds = {"use_instance_mask": True, "instance_mask_format": "bitmask", "recompute_boxes": True}
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB", **kinds)
    annotation = {"bbox": [1, 1, 5, 5], "bbox_mode": 1, "category_id": 0, "segmentation": "?"}
    with pytest.raises(DatasetError, match="has an annotation, number 0, .*'[?]', that cannot be"):
        CheckedMapper(mapper)({**RECORD, "file_name": str(path), "annotations": [annotation]})


REPOSITORY = Path(__file__).resolve().parents[2]

TRAIN = """
import sys
from lt_detectron2.data.datasets import register_dataset
from lt_detectron2.engine.launch import launch
from tests.engine.small_set import register
from pathlib import Path
import train_net

folder = Path(sys.argv[1])
register("damaged_set", folder)
(folder / "3.png").write_bytes(b"")
from detectron2.engine import default_argument_parser
from lt_detectron2.errors import UserError
try:
    launch(train_net.main, 1, args=(default_argument_parser().parse_args(sys.argv[2:]),))
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_while_training(tmp_path, workers):
    """A training ends at an unreadable image in one sentence, also one that a worker reads."""
    command = [sys.executable, "-c", TRAIN, str(tmp_path)]
    command += ["--config-file", "configs/SynthLT/softmax_smoke.yaml"]
    command += ["DATASETS.TRAIN", "('damaged_set',)", "DATASETS.TEST", "()"]
    command += ["MODEL.ROI_HEADS.NUM_CLASSES", "7", "SOLVER.IMS_PER_BATCH", "8"]
    command += ["DATALOADER.NUM_WORKERS", str(workers), "OUTPUT_DIR", str(tmp_path / "output")]
    command += ["SOLVER.MAX_ITER", "3", "MODEL.DEVICE", "cpu"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=dict(os.environ)
    )
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: image 3 ("), done.stdout + done.stderr
    assert "3.png) cannot be read" in last
