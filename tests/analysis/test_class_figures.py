"""AP against counts, and histograms of counts: what their CSV says, and what is refused."""

import math
import re

import pytest
from detectron2.data import DatasetCatalog

from lt_detectron2.analysis import ap_by_count, class_histogram
from lt_detectron2.analysis.results import read_categories
from lt_detectron2.data import datasets  # noqa: F401  registers them
from lt_detectron2.errors import UserError
from lt_detectron2.statistics import ClassStatistics

from .figures import STATISTICS, numbers, read_csv

HEADER = "category_id,name,group,train_images,train_instances,val_images,val_instances,bbox_AP"


def write_results(folder, *rows):
    (folder / "inference").mkdir(parents=True)
    (folder / "inference" / "per_category.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


def test_ap_of_two_runs(tmp_path):
    before = write_results(tmp_path / "a", "1,cat,f,900,2,3,4,50.5", "4,emu,r,3,3,1,1,n/a")
    after = write_results(tmp_path / "b", "1,cat,f,900,2,3,4,49.0", "4,emu,r,3,3,1,1,12.25")
    assert read_categories(after)[4].group == "rare" and math.isnan(read_categories(before)[4].ap)
    rows = read_csv(ap_by_count.draw(before, after, ("old", "new"), tmp_path / "ap.png"))
    assert [(r["class"], r["train_images"], r["old"], r["new"]) for r in rows] == [
        ("cat", "900", "50.5", "49"),
        ("emu", "3", "nan", "12.25"),
    ]


def test_runs_that_do_not_fit_are_refused(tmp_path):
    one = write_results(tmp_path / "a", "1,cat,f,n/a,n/a,3,4,50.5")
    other = write_results(tmp_path / "b", "2,cat,f,900,2,3,4,50.5")
    assert read_categories(one)[1].train_images == -1  # nobody knows
    with pytest.raises(UserError, match="were evaluated on different classes"):
        ap_by_count.draw(one, other, ("a", "b"), tmp_path / "ap.png")
    with pytest.raises(UserError, match="segm AP of classes in .*/a, there is none: evaluate"):
        ap_by_count.draw(one, one, ("a", "b"), tmp_path / "ap.png", task="segm")
    with pytest.raises(UserError, match="expected the results of an evaluation at"):
        ap_by_count.draw(one, tmp_path, ("a", "b"), tmp_path / "ap.png")
    with pytest.raises(UserError, match="training images of the classes in .* no evaluation knew"):
        ap_by_count.draw(one, one, ("a", "b"), tmp_path / "ap.png")


@pytest.mark.parametrize("is_baseline", [True, False])
def test_counts_of_either_run_will_do(is_baseline, tmp_path):
    counted = write_results(tmp_path / "a", "1,cat,f,900,2,3,4,50.5")
    other = write_results(tmp_path / "b", "1,cat,n/a,n/a,n/a,3,4,49.0")
    runs = (counted, other) if is_baseline else (other, counted)
    (row,) = read_csv(ap_by_count.draw(*runs, ("old", "new"), tmp_path / "ap.png"))
    assert (row["group"], row["train_images"]) == ("frequent", "900")


def test_a_run_of_another_task_has_names_and_counts(tmp_path):
    results = read_categories(write_results(tmp_path, "1,cat,f,900,2,3,4,50.5"), "segm")
    assert (results[1].name, results[1].train_images) == ("cat", 900)
    assert math.isnan(results[1].ap)


def test_no_bar_is_cut_off(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(class_histogram, "save", lambda f, *_: limits.extend(f.axes))
    small = ClassStatistics([5, 8], [4, 2], 6)
    class_histogram.draw_several([small, STATISTICS], tmp_path / "both.png", ["one", "two"])
    assert all(axes.get_ylim()[0] < 1 and axes.get_ylim()[1] > 500 for axes in limits)


def test_help_names_sets_that_are_registered():
    named = re.findall(r"\w+_train\b", class_histogram.__doc__)
    assert len(named) == 3 and set(named) <= set(DatasetCatalog.list())


def test_histograms(tmp_path):
    other = ClassStatistics([5, 0, 8], [4, 0, 2], 6)
    rows = read_csv(
        class_histogram.draw_several([STATISTICS, other], tmp_path / "both.png", ["one", "two"])
    )
    assert [r["set"] for r in rows] == ["one"] * 4 + ["two"] * 3
    assert numbers(rows, "train_images") == [500, 300, 30, 2, 4, 2, 0]
    assert numbers(rows, "train_instances") == [9000, 700, 40, 3, 5, 8, 0]
    assert numbers(rows, "rank") == [0, 1, 2, 3, 0, 1, 2]
    assert [r["group"] for r in rows[:4]] == ["frequent", "frequent", "common", "rare"]
    rows = read_csv(class_histogram.draw(STATISTICS, tmp_path / "one.png", "a set"))
    assert [r["class"] for r in rows] == ["cat", "dog", "emu", "newt"] and "set" not in rows[0]
