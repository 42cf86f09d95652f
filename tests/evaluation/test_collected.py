"""Detections that are collected while a model runs: what comes out, and what is left behind."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lt_detectron2.errors import UserError
from lt_detectron2.evaluation import Detections, EvaluationOptions, LongTailLVISEvaluator
from lt_detectron2.evaluation.collected import CollectedDetections
from lt_detectron2.evaluation.detections import Kept
from lt_detectron2.evaluation.masks import RunLengthMasks
from tests.losses.two_processes import run_in_two_processes

from .evaluator_cases import model_outputs, register, run
from .official import random_set

AT_ONCE = "lt_detectron2.evaluation.collected._AT_ONCE"
SEED = 14


def random_part(rng: np.random.Generator, number: int, with_masks: bool) -> Detections:
    masks = None
    if with_masks:
        lengths = rng.integers(0, 9, number)
        masks = RunLengthMasks(
            counts=rng.integers(48, 96, lengths.sum(), dtype=np.uint8),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            sizes=rng.integers(1, 99, (number, 2), dtype=np.int32),
        ).take(rng.permutation(number))
    return Detections(
        image_ids=rng.integers(0, 1 << 40, number),
        category_ids=rng.integers(0, 9, number, dtype=np.int32),
        scores=rng.random(number, dtype=np.float32),
        boxes=rng.random((number, 4), dtype=np.float32),
        masks=masks,
        kept=Kept(300, dropped={"over the cap": int(rng.integers(9))}),
    )


def assert_same(found: Detections, expected: Detections) -> None:
    found, expected = found.columns(), expected.columns()
    assert list(found) == list(expected)
    for name, column in expected.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_all_come_back_in_order(at_once, with_masks, tmp_path, monkeypatch):
    monkeypatch.setattr(AT_ONCE, at_once)
    rng = np.random.default_rng(SEED)
    parts = [random_part(rng, number, with_masks) for number in (3, 0, 5, 1, 40, 0, 2)]
    in_files = CollectedDetections(str(tmp_path / "new" / "folder"), Kept(300))
    in_memory = CollectedDetections(None, Kept(300))
    for number, part in enumerate(parts, start=1):
        for collected in (in_files, in_memory):
            collected.append(part)
            so_far = Detections.concatenate(parts[:number])
            assert len(collected) == len(so_far)
            assert_same(collected.read(), so_far)
    found = in_files.read()
    del in_files
    assert_same(found, Detections.concatenate(parts))
    assert not list(tmp_path.glob("**/*.*")), "the files have no names"


def test_nothing_collected_is_no_detections(tmp_path):
    for folder in (None, str(tmp_path)):
        found = CollectedDetections(folder, Kept(300)).read()
        assert_same(found, replace(Detections.empty(), kept=Kept(300)))


def test_codes_without_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(AT_ONCE, 1)
    part = random_part(np.random.default_rng(SEED), 4, with_masks=False)
    part = replace(part, masks=RunLengthMasks.empty().spread(np.zeros(0, np.int64), 4))
    collected = CollectedDetections(str(tmp_path), Kept(300))
    collected.append(part)
    assert_same(collected.read(), part)


def test_memory_does_not_grow_with_the_number(tmp_path, monkeypatch):
    monkeypatch.setattr(AT_ONCE, 5_000)
    peaks = {}
    for number in (50, 400):
        rng = np.random.default_rng(SEED)
        tracemalloc.start()
        collected = CollectedDetections(str(tmp_path), Kept())
        for _ in range(number):
            collected.append(random_part(rng, 1_000, with_masks=True))
        peaks[number] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(collected.read()) == 1_000 * number
    assert peaks[400] < 1.1 * peaks[50]


@pytest.mark.parametrize("at_once", [1, 1000])
def test_masks_for_some_images_only(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(AT_ONCE, at_once)
    rng = np.random.default_rng(SEED)
    collected = CollectedDetections(str(tmp_path), Kept())
    with pytest.raises(ValueError, match="masks for all images or for none"):
        collected.append(random_part(rng, 2, with_masks=True))
        collected.append(random_part(rng, 2, with_masks=False))
        collected.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(AT_ONCE, 1)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: open("/dev/full", "w+b"))
    part = random_part(np.random.default_rng(SEED), 2, with_masks=False)
    with pytest.raises(UserError, match="room for detections in .*No space left.*OUTPUT_DIR"):
        CollectedDetections(str(tmp_path), Kept()).append(part)


def written(options: EvaluationOptions, folder: Path, name: str, pairs: list) -> dict[str, bytes]:
    """The files of an evaluation."""
    run(LongTailLVISEvaluator(name, output_dir=str(folder), options=options), pairs)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("max_dets_per_category", [None, 6])
def test_files_of_an_evaluation_are_the_same(max_dets_per_category, workers, tmp_path, monkeypatch):
    monkeypatch.setattr("lt_detectron2.evaluation.prefilter._FIRST_COMPACTION", 20)
    monkeypatch.setattr("lt_detectron2.evaluation.evaluator._MAX_IMAGES_WAITING", 2)
    options = EvaluationOptions(workers=workers)
    if max_dets_per_category:
        options = EvaluationOptions(
            workers=workers, ap_fixed=True, max_dets_per_category=max_dets_per_category
        )
    dataset, results = random_set(np.random.default_rng(SEED), "segm")
    name, pairs = register(dataset, tmp_path), model_outputs(dataset, results)
    held = written(options, tmp_path / "held", name, pairs)
    monkeypatch.setattr(AT_ONCE, 5)
    assert written(options, tmp_path / "written", name, pairs) == held


def test_an_interrupted_evaluation_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(AT_ONCE, 1)
    dataset, results = random_set(np.random.default_rng(SEED), "segm")
    folder = tmp_path / "inference"
    evaluator = LongTailLVISEvaluator(register(dataset, tmp_path), output_dir=str(folder))
    for image, output in model_outputs(dataset, results):
        evaluator.process([image], [output])
    evaluator._collect()
    assert len(evaluator._collected) > 10
    assert not list(folder.iterdir())


def half_in_files(rank: int, folder: str) -> dict[str, float]:
    dataset, results = random_set(np.random.default_rng(SEED), "segm")
    path = Path(folder) / str(rank)
    path.mkdir()
    name, pairs = register(dataset, path), model_outputs(dataset, results)
    evaluator = LongTailLVISEvaluator(name, output_dir=folder + "/two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AT_ONCE, 3)
        return dict(run(evaluator, pairs[rank::2])["segm"])


def test_two_processes_write_what_one_does(tmp_path):
    dataset, results = random_set(np.random.default_rng(SEED), "segm")
    name, pairs = register(dataset, tmp_path), model_outputs(dataset, results)
    alone = written(EvaluationOptions(), tmp_path / "one", name, pairs)
    first, second = run_in_two_processes(half_in_files, str(tmp_path))
    np.testing.assert_equal(first, second)
    together = (tmp_path / "two" / "detections.npz").read_bytes()
    assert together == alone["detections.npz"]
