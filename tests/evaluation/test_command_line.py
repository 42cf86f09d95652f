"""`python -m lt_detectron2.evaluation`."""

import json
import re

import numpy as np
import pytest

from lt_detectron2.evaluation.__main__ import main
from lt_detectron2.evaluation.oracle import ORACLES
from lt_detectron2.statistics import ClassStatistics

from .official import as_coco, random_set
from .small_set import AP_OF_CATEGORY_1, small_set

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")


@pytest.fixture
def case(tmp_path):
    def write(dataset, results):
        (tmp_path / "annotations.json").write_text(json.dumps(dataset))
        (tmp_path / "results.json").write_text(json.dumps(results))
        return [str(tmp_path / "annotations.json"), str(tmp_path / "results.json")]

    return write


def test_lvis(case, capsys, tmp_path):
    files = case(*small_set())
    statistics = {"instance_count": [900, 9, 9], "image_count": [200, 2, 2], "num_images": 300}
    (tmp_path / "class_statistics.json").write_text(json.dumps(statistics))
    folder = tmp_path / "report"
    main(
        [*files, "--statistics", str(tmp_path / "class_statistics.json"), "--bootstrap", "5"]
        + ["--errors"]
        + ["--bins", "20", "--output", str(folder)]
    )
    text = capsys.readouterr().out
    assert "detections: 300 per image" in text
    assert "| bbox, bootstrap |" in text
    assert re.search(r"\| bbox, IoU 0.5 \| +detections \| +mean score \|", text)
    assert re.search(r"\| missed +\| +1 \|", text)
    content = json.loads((folder / "results.json").read_text())["results"]["bbox"]
    written = json.loads((folder / "results.json").read_text())
    assert written["errors"]["bbox"]["background"]["number"] == 1
    assert written["calibration"]["bbox"]["all"]["detections"] == 3
    assert content["APf"] == content["AP_2"] == pytest.approx(100 * AP_OF_CATEGORY_1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "outcomes_bbox.npz",
        "per_category.csv",
        "precision_recall.npz",
        "results.json",
    ]
    with np.load(folder / "precision_recall.npz") as curves:
        assert curves["bbox_precision"].shape == (10, 101, 3, 4)
        assert curves["bbox_recall"].shape == (10, 3, 4)
        assert curves["area_ranges"].tolist() == ["all", "small", "medium", "large"]


def test_counts_of_other_classes_are_warned_of(case, tmp_path, caplog):
    files = case(*small_set())
    names = ["category 1", "category 2", "category 3"]
    path = tmp_path / "class_statistics.json"
    for trained, warnings in ((names, 0), (None, 0), ([*names[:2], "emu"], 1)):
        caplog.clear()
        statistics = ClassStatistics([900, 9, 9], [200, 2, 2], 300, trained)
        path.write_text(json.dumps(statistics.state_dict()))
        main([*files, "--statistics", str(path)])
        found = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(found) == warnings, found
    assert "class 2 is 'emu' there and 'category 3' here (1 of 3 differ). If they" in found[0]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_official_backend(task, case, capsys, monkeypatch):
    files = case(*random_set(np.random.default_rng(4), task))
    main([*files, "--tasks", task, "--backend", "lvis", "--cap", "20"])
    assert f"| {task} |" in capsys.readouterr().out
    curves = ORACLES["lvis"]

    def other(*arguments):
        official = curves(*arguments)
        official.recall[...] += 1e-9
        return official

    monkeypatch.setitem(ORACLES, "lvis", other)
    with pytest.raises(SystemExit, match=f"error: {task}: .* values of recall differ"):
        main([*files, "--tasks", task, "--backend", "lvis"])
    with pytest.raises(SystemExit, match="knows boxes and masks under a cap per image only"):
        monkeypatch.undo()
        main([*files, "--tasks", task, "--backend", "lvis", "--fixed", "5"])


def test_id_0_is_what_the_official_package_has_for_no_match(case):
    pytest.importorskip("lvis")
    dataset, results = small_set()
    dataset["annotations"][0]["id"] = 0
    files = case(dataset, results)
    main(files)
    with pytest.raises(SystemExit, match="error: .*annotations from 1 on, .* give it another id"):
        main([*files, "--backend", "lvis"])


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_half_an_lvis_file_is_no_coco_file(case, key):
    dataset, results = small_set()
    for image in dataset["images"]:
        image.pop(key)
    with pytest.raises(SystemExit, match=f"expected '{key}' for every image"):
        main(case(dataset, results))


def test_coco_and_fixed(case, capsys):
    dataset, results = random_set(np.random.default_rng(4), "segm")
    files = case(as_coco(dataset), results)
    main([*files, "--tasks", "bbox", "segm", "boundary"])
    text = capsys.readouterr().out
    assert "| boundary |" in text and "AR@10" in text
    assert "100 per category and image" in text
    main([*files, "--fixed"])
    text = capsys.readouterr().out
    assert "| bbox_fixed |" in text and "APpool" in text
    assert "10,000 per category over the whole set (AP-fixed)" in text


def test_errors_are_one_line(case, tmp_path):
    dataset, results = small_set()
    files = case(dataset, results)
    with pytest.raises(SystemExit, match="error: .*absent.npz, found no such file"):
        main([files[0], str(tmp_path / "absent.npz")])
    with pytest.raises(SystemExit, match="error: .*results.json: the tasks 'segm' .* boxes only"):
        main([*files, "--tasks", "segm"])
    files = case({**dataset, "annotations": []}, results)
    with pytest.raises(SystemExit, match="has no annotations: pass those of"):
        main(files)


FILES = ("annotations.json", "results.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.json", FILES[1]), "annotations at absent.json, found no such file"),
        (("folder", FILES[1]), "expected a JSON file, folder cannot be read"),
        ((*FILES, "--statistics", "absent.json"), "counts of a training in absent.json, .*No such"),
        ((*FILES, "--statistics", FILES[1]), "counts of a training in results.json, .*give the"),
        ((*FILES, "--output", FILES[1]), "write results to results.json, .*another .*--output"),
        ((*FILES, "--bins", "5", "3"), "expects rising edges, got .5, 3.: sort them"),
        ((*FILES, "--bootstrap", "-1"), "bootstrap expects a number >= 0, got -1"),
        ((*FILES, "--cap", "0"), "per_image expects a positive number of detections, got 0"),
        ((*FILES, "--fixed", "0"), "per_category expects a positive number of detections, got 0"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, case, tmp_path, monkeypatch):
    case(*small_set())
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(arguments)
