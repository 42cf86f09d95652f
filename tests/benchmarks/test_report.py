"""The page of results: the last full measurement counts, and its marks stay."""

import csv
import json

import pytest

from benchmarks import data, inference, report

COLUMNS = ("case", "contestant", "sizes", "runs", "ms_median", "extra_tensors", "machine")
SPEEDUPS = ("speedup_q1", "speedup_median", "speedup_q3")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    rows = []
    full, slower, short = ("21", "15", "5")
    cpu = "Intel(R) Xeon(R) CPU, 2 cores"
    for machine, runs, times in [
        (cpu, full, (1.0, 2.0)),
        (cpu, slower, (1.0, 4.0)),
        (cpu, short, (1.0, 9.0)),
        ("NVIDIA (Intel(R) Xeon(R) CPU), 2 cores", short, (1.0, 8.0)),
    ]:
        common = {"case": "c", "sizes": "regions=8", "machine": machine, "extra_tensors": "1.5"}
        common["runs"] = runs
        rows.append({**common, "contestant": "ours", "ms_median": str(times[0])})
        speedups = dict.fromkeys(SPEEDUPS, str(times[1] / times[0]))
        slow = {"runs": "1", "ms_median": str(times[1])}  # it sat out most turns
        rows.append({**common, "contestant": "theirs", **slow, **speedups})
    with open(tmp_path / "topic.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *SPEEDUPS], restval="")
        writer.writeheader()
        writer.writerows(rows)


def test_tables(results):
    (row,) = report.speedups("topic", "theirs")[1:]
    assert row == ("c", "1.0", "4.0", "4.0", "4.0 to 4.0", "8.0")
    (row,) = report.versus("topic", "theirs")[1:]
    assert row == ("c", "1.0", "4.0", "0.25", "0.25 to 0.25", "1.5", "0.12")
    assert report.markdown(report.speedups("absent", "theirs")) == "Not measured."


def test_ratios_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with open(tmp_path / "losses.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *SPEEDUPS], restval="")
        writer.writeheader()
        for name, regions, compiled, ms in [
            *(("B", 8192, False, 4.0), ("A", 512, False, 3.0), ("B", 512, False, 1.0)),
            ("B", 512, True, 9.0),
        ]:
            of = f"name={name} regions={regions} classes=80 compiled={compiled}"
            common = {"case": of, "sizes": of, "machine": "CPU", "runs": "9"}
            writer.writerow({**common, "contestant": name, "ms_median": 2 * ms})
            speedups = dict.fromkeys(SPEEDUPS, "0.5")
            writer.writerow({**common, "contestant": "cross_entropy", "ms_median": ms, **speedups})
    assert report.by_size() == [
        ("loss", "512 x 80", "8,192 x 80"),
        ("cross entropy, ms", "2", "4"),
        ("A", "2.00", "not measured"),
        ("B", "2.00", "2.00"),
    ]


def test_times_the_floor(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.markdown(report.floors()) == "Not measured."
    common = {"sizes": "regions=1000 classes=250 captured=True", "machine": "GPU (CPU), 2 cores"}
    common["runs"] = "21"
    with open(tmp_path / "losses.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *SPEEDUPS], restval="")
        writer.writeheader()
        for name, ms in (("SeesawLoss", 0.3), ("copy", 0.2), ("compiled", 0.6)):
            speedups = dict.fromkeys(SPEEDUPS, "" if name == "SeesawLoss" else str(ms / 0.3))
            row = {"case": "c", "contestant": name, "ms_median": ms, **common, **speedups}
            writer.writerow(row)
    (row,) = report.floors()[1:]
    # Of 50 calls, each of which copies a million bytes and writes as many.
    assert row == ("c", "6.0", "4.0", "500", "1.50", "0.50")


def test_marks():
    page = "a\n<!-- table x -->\nold\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n"
    once = report.replace_table(page, "x", "new")
    assert once == page.replace("old", "new")
    assert report.replace_table(once, "x", "new") == once
    with pytest.raises(ValueError, match="one place for table z"):
        report.replace_table(page, "z", "new")


def test_page_has_a_place_for_every_table():
    page = report.PAGE.read_text()
    for name in (
        "losses",
        "losses_sizes",
        "losses_gpu",
        "ranking",
        "inference",
        "masks",
        "training_step",
        "data",
        "evaluation",
    ):
        assert report.replace_table(page, name, "new") != page
    for name in report.FIGURES:
        assert f"images/performance_{name}.png" in page


def test_inference_results_are_compared():
    contest = inference.set_up("boxes", "trained")
    assert contest.check() == 0
    with pytest.raises(AssertionError, match="differ"):
        inference.compare([b"a"], [b"b"])


def test_generated_annotations_are_of_the_wanted_size(tmp_path):
    data.write_dataset(tmp_path, 0.0002)
    dataset = json.loads((tmp_path / "annotations.json").read_text())
    assert (len(dataset["images"]), len(dataset["annotations"])) == (20, 254)
    assert {a["image_id"] for a in dataset["annotations"]} <= {i["id"] for i in dataset["images"]}
    assert data.memory(1)[0] >= 0
