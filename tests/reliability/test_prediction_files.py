"""Damaged files of predictions: evaluated, or explained in one sentence."""

import io
import json

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import strategies as st

from lt_detectron2.errors import UserError, about
from lt_detectron2.evaluation import (
    Detections,
    EvaluationOptions,
    GroundTruth,
    Protocol,
    groups_from_frequency,
)
from lt_detectron2.evaluation.measure import measure

from .mutations import changed, damaged, each_number, explore, works_or_is_explained
from .test_annotation_files import FILES, HEIGHT, WIDTH

INDEX = GroundTruth.from_lvis(FILES["lvis"], with_masks=True)


def results():
    """Four detections with boxes and masks."""
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 2, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    codes = pycocotools.mask.encode(np.asfortranarray(masks))
    return [
        {"image_id": image, "category_id": category, "score": 0.9 - 0.1 * n}
        | {
            "bbox": [1.0, 2, 30, 20 + n],
            "segmentation": {**code, "counts": code["counts"].decode()},
        }
        for n, (image, category, code) in enumerate(zip((7, 3, 7, 5), (40, 11, 25, 11), codes))
    ]


def columns():
    return Detections.from_results(results()).columns()


def archive(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@st.composite
def changed_archives(draw):
    """A detections.npz with one of its arrays of another type, shape or content, or missing."""
    arrays = columns()
    name = draw(st.sampled_from(sorted(arrays)))
    array = arrays[name]
    change = draw(
        st.sampled_from(
            [
                lambda a: None,
                lambda a: a.reshape(-1)[:1],
                lambda a: a.reshape(-1)[:-1],
                lambda a: a[..., None],
                lambda a: a.astype(str),
                lambda a: np.full_like(a, 0) if a.dtype.kind in "iuf" else np.array("{"),
                lambda a: a - 50 if a.dtype.kind in "iuf" else np.array('{"a": 1}'),
                lambda a: a * a.dtype.type(100) if a.dtype.kind in "iuf" else np.array("[]"),
                lambda a: np.full(a.shape, np.nan),
                lambda a: np.concatenate([a, a]) if a.ndim else a,
            ]
        )
    )
    arrays[name] = change(array)
    return archive({name: array for name, array in arrays.items() if array is not None})


def evaluate(path):
    """Metrics of a file, with boxes and, where it has them, masks."""
    with about(str(path)):
        return _evaluate(path)


def _evaluate(path):
    detections = Detections.load(str(path))
    tasks = ("bbox",) if detections.masks is None else ("bbox", "segm")
    groups = (groups_from_frequency(INDEX),)
    return measure(INDEX, detections, tasks, Protocol(), groups, EvaluationOptions())


INPUTS = {
    "changed results.json": (
        "results.json",
        lambda: changed(results()).map(lambda content: json.dumps(content).encode()),
    ),
    "damaged results.json": (
        "results.json",
        lambda: damaged(json.dumps(results()).encode()),
    ),
    "changed detections.npz": ("detections.npz", changed_archives),
    "damaged detections.npz": ("detections.npz", lambda: damaged(archive(columns()))),
}


@pytest.mark.parametrize("kind", INPUTS)
@each_number(12, 150)
def test_damaged_predictions(tmp_path, kind, number):
    """A damaged file of predictions is evaluated, or one error names what is wrong and a remedy."""
    name, contents = INPUTS[kind]

    def check(content):
        (tmp_path / name).write_bytes(content)
        works_or_is_explained(
            lambda: evaluate(tmp_path / name),
            str(tmp_path / name),
            r"result \d+|first result|detection \d+|it has \w+ (of|with)|it lacks|mask \d+|"
            r"JSON list|may be incomplete|it is cut short or no archive|unknown image ids",
        )

    explore(check, number, contents())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"score": "high"}, "result 1 has score 'high', expected a number"),
        ({"image_id": 7.5}, "result 1 has image_id 7.5, expected an integer"),
        ({"bbox": [1, 2, 3]}, "result 1 has bbox .*expected four finite numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "result 1 has segmentation .*expected COCO's"),
        ({"segmentation": {"size": [40, 50], "counts": "00"}}, "40 x 50 pixels in result 1"),
    ],
)
def test_result_is_named(tmp_path, change, message):
    """The error of an unusable result says which one it is, what it has, and what to do."""
    entries = results()
    entries[1].update(change)
    (tmp_path / "results.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message) as error:
        Detections.load(str(tmp_path / "results.json"))
    assert "results.json" in str(error.value)


def test_predictions_hold_no_program(tmp_path):
    """A detections.npz that holds pickled objects is refused, not unpickled."""
    arrays = columns() | {"scores": np.array([print] * 4, dtype=object)}
    (tmp_path / "detections.npz").write_bytes(archive(arrays))
    with pytest.raises(UserError, match="detections.npz.*allow_pickle=False"):
        Detections.load(str(tmp_path / "detections.npz"))
