"""Every figure is a program: its help, its files, and errors that are one sentence."""

import importlib
import sys

import pytest

from lt_detectron2.analysis import hiou

PROGRAMS = (
    "ap_by_count",
    "class_histogram",
    "confusion",
    "gradient_ratio",
    "harmonic_gradients",
    "hiou",
    "negative_share",
    "predictions",
    "score_ranks",
    "weight_norms",
)
WANT_RUNS = {"ap_by_count": 2, "score_ranks": 2, "confusion": 1}


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"lt_detectron2.analysis.{name}").main()
    return stopped.value.code


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name, monkeypatch, capsys):
    assert run(monkeypatch, name, "--help") == 0
    printed = capsys.readouterr().out
    assert f"usage: python -m lt_detectron2.analysis.{name}" in printed and "--output" in printed


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - {"hiou", "harmonic_gradients"}))
def test_what_is_not_there(name, monkeypatch, capsys, tmp_path):
    missing = [tmp_path / "nothing"] * WANT_RUNS.get(name, 1)
    assert run(monkeypatch, name, *missing, "--output", tmp_path / "figure.png") == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "figure.png").exists()


def test_figure_and_table(monkeypatch, capsys, tmp_path):
    path = tmp_path / "new" / "curves.png"
    assert run(monkeypatch, "hiou", "--gamma", 0.5, "--output", path) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.is_file() and path.with_suffix(".csv").is_file()
    assert run(monkeypatch, "hiou", "--gamma", 3, "--output", path) == 1
    assert "gamma must lie in 0..1" in capsys.readouterr().err


def test_a_label_for_each_run(monkeypatch, capsys, tmp_path):
    code = run(monkeypatch, "confusion", tmp_path, "--labels", "one", "two")
    assert code == 1
    assert "error: expected 1 --labels, got 2" in capsys.readouterr().err


def test_columns_of_one_length(tmp_path):
    from lt_detectron2.analysis.style import write_csv

    with pytest.raises(ValueError, match="expected columns of one length"):
        write_csv(tmp_path / "a.csv", {"a": [1], "b": [1, 2]})


def test_curves_have_names(tmp_path):
    assert hiou.draw(tmp_path / "no suffix").is_file()
