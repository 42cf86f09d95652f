"""`compare`: a run that finds rare classes against one that does not."""

import json

import pytest

from lt_detectron2.commands.command_line import main
from lt_detectron2.data.datasets.custom import register_annotations
from lt_detectron2.data.statistics import dataset_statistics, write_statistics
from lt_detectron2.evaluation.__main__ import main as evaluate

RARE = (13, 33)
"""Category ids of the two rare classes of the example."""


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """
    Two evaluated runs: "plain" misses the rare classes, "better" finds every object. Both are also
    there as evaluated without the counts of the training set.
    """
    folder = tmp_path_factory.mktemp("runs")
    counts = dataset_statistics((register_annotations(data / "train.json"),))
    write_statistics(counts, folder / "counts.json")
    truth = json.loads((data / "val.json").read_text(encoding="utf-8"))["annotations"]
    for name, missed in (("plain", RARE), ("better", ())):
        keys = ("image_id", "category_id", "bbox")
        found = [
            {**{key: entry[key] for key in keys}, "score": 0.9}
            for entry in truth
            if entry["category_id"] not in missed
        ]
        (folder / "results.json").write_text(json.dumps(found))
        arguments = [str(data / "val.json"), str(folder / "results.json"), "--tasks", "bbox"]
        evaluate([*arguments, "--output", str(folder / f"{name}_uncounted" / "inference")])
        arguments += ["--statistics", str(folder / "counts.json")]
        evaluate([*arguments, "--output", str(folder / name / "inference")])
    return folder


def test_tables_figures_and_numbers(runs, tmp_path, capsys):
    options = ["--samples", "30", "--output", str(tmp_path / "comparison")]
    assert main(["compare", str(runs / "plain"), str(runs / "better"), *options]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if "|" in line}
    rare = [cell.strip() for cell in rows["Nº2 red striped diamond"].split("|")[2:-1]]
    assert rare == ["rare", "2", "12", "12", "0.0", "100.0", "100.0", "100.0", "100.0", "yes"]
    same = [cell.strip() for cell in rows["Nº7 red striped cross"].split("|")[2:-1]]
    assert same[0:2] == ["frequent", "108"] and same[-4:] == ["0.0", "0.0", "0.0", "no"]
    assert "better is better than plain" in printed
    assert "Of 7 classes in 10 images or more (of 7) 2 clearly better, 0 clearly worse" in printed

    files = {path.name for path in (tmp_path / "comparison").iterdir()}
    assert {"comparison.md", "comparison.json", "differences.png", "ap_by_count.png"} <= files
    numbers = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert numbers["metrics"]["APr"]["difference"]["value"] == pytest.approx(100)
    assert [c["val_images"] for c in numbers["classes"]] == [12] * 7
    assert [c["is_clear"] for c in numbers["classes"]] == [False] * 5 + [True] * 2
    assert "![differences](differences.png)" in (
        tmp_path / "comparison" / "comparison.md"
    ).read_text(encoding="utf-8")


def test_the_other_way_round_and_with_itself(runs, capsys):
    for first, second, verdict in (
        ("better", "plain", "plain is worse than better"),
        ("plain", "plain", "do not tell"),
    ):
        assert main(["compare", str(runs / first), str(runs / second), "--samples", "20"]) == 0
        assert verdict in capsys.readouterr().out


@pytest.mark.parametrize("names", [("plain_uncounted", "better"), ("plain", "better_uncounted")])
def test_one_run_that_was_evaluated_without_counts(names, runs, capsys):
    assert main(["compare", *(str(runs / name) for name in names), "--samples", "5"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if "|" in line}
    whose = "first" if names[0] == "plain" else "second"
    assert f"those of the {whose} are used for both" in printed
    assert [cell.strip() for cell in rows["APr"].split("|")[2:4]] == ["0.00", "100.00"]
    assert rows["Nº2 red striped diamond"].split("|")[2:4] == ["     rare ", "            2 "]


def test_without_any_counts_there_is_no_figure_of_them(runs, tmp_path, capsys):
    folders = [str(runs / f"{name}_uncounted") for name in ("plain", "better")]
    assert main(["compare", *folders, "--samples", "5", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "red striped diamond" in line)
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["n/a", "n/a"]
    assert (tmp_path / "differences.png").is_file()
    assert not (tmp_path / "ap_by_count.png").exists()


def test_files_of_outcomes(runs, capsys):
    files = [str(runs / name / "inference" / "outcomes_bbox.npz") for name in ("plain", "better")]
    assert main(["compare", *files, "--samples", "10"]) == 0
    assert "class 1" in capsys.readouterr().out  # they know no names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{runs}/plain", "{runs}/nothing"], "evaluate the run first"),
        (["{runs}/plain", "{runs}/better", "--task", "segm"], "outcomes_segm.npz"),
        (["{runs}/plain", "{runs}/better", "--samples", "0"], "at least one sample of"),
        (["{runs}/plain", "{runs}/better", "--seed", "-1"], "a seed of at least 0, got -1"),
    ],
)
def test_bad_input(runs, arguments, message, capsys):
    assert main(["compare", *(a.format(runs=runs) for a in arguments)]) == 1
    assert message in capsys.readouterr().err
