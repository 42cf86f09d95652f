"""The page of figures shows every figure, with a command that its program understands."""

import csv
import importlib
import re
import shlex
import sys
from pathlib import Path
from statistics import mean

import pytest

from tests.analysis.test_programs import PROGRAMS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "figures.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m (lt_detectron2(?:[^\\\n]|\\\n)*)", PAGE, re.MULTILINE)


def test_every_figure_is_shown():
    images = re.findall(r"!\[.+\]\((images/figures/(\w+)\.png)\)", PAGE)
    assert sorted(name for _, name in images) == sorted(PROGRAMS)
    for path, name in images:
        assert (DOCS / path).is_file() and (DOCS / path).with_suffix(".csv").is_file()
        assert f"[`{name}`]" in PAGE
    files = {file.name for file in (DOCS / "images" / "figures").iterdir()}
    shown = {f"{name}.{ending}" for name in PROGRAMS for ending in ("png", "csv")}
    assert files == shown | {"gradient_ratio_over_training.csv"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, monkeypatch):
    module, *arguments = shlex.split(command.replace("\\\n", " "))
    assert module.rsplit(".", 1)[1] in PROGRAMS
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    drawn = []
    figure = importlib.import_module(module)
    monkeypatch.setattr(figure, "draw_and_exit", drawn.append)
    figure.main()
    assert len(drawn) == 1


def rows_of(figure):
    with (DOCS / "images" / "figures" / f"{figure}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def group_mean(figure, run, group):
    return mean(float(row[run]) for row in rows_of(figure) if row["group"] == group)


def test_sentences_have_the_numbers_of_the_figures():
    text = " ".join(PAGE.split())
    ratios = [float(r["softmax"]) for r in rows_of("gradient_ratio") if r["group"] == "rare"]
    assert f"gives a rare class {1 / max(ratios):.0f} to {1 / min(ratios):.0f} times as" in text
    shares = [group_mean("negative_share", run, "rare") for run in ("softmax", "EQL v2")]
    assert f"{shares[0]:.0%} comes from regions of".replace("%", " %") in text
    assert f"under softmax and {shares[1]:.0%} under EQL".replace("%", " %") in text
    norms = {
        run: [f"{group_mean('weight_norms', run, group):.2f}" for group in ("frequent", "rare")]
        for run in ("softmax", "softmax + GAP", "EQL v2")
    }
    assert "falls from {} for frequent classes to {} for".format(*norms["softmax"]) in text
    assert "keeps {1} of {0}; EQL v2".format(*norms["softmax + GAP"]) in text
    assert "({} and {})".format(*norms["EQL v2"]) in text
    gains = [
        group_mean("ap_by_count", "EQL v2", group) - group_mean("ap_by_count", "softmax", group)
        for group in ("rare", "common", "frequent")
    ]
    assert "{:.0f} points on the mean rare class, {:.0f} on the".format(*gains) in text
    assert f"some lose, {-gains[2]:.0f} points in the mean" in text
    rare = [row for row in rows_of("confusion") if row["group"] == "rare"]
    objects = {
        taker: sum(int(row["objects"]) for row in rare if taker in (row[column], "all"))
        for taker, column in (
            ("all", "class"),
            ("frequent", "taken_for_group"),
            ("missed", "taken_for"),
        )
    }
    assert "Of {all} rare objects".format(**objects) in text
    sentence = "{frequent} are taken for a frequent class, {missed} are missed"
    assert sentence.format(**objects) in text
    assert not any(row["class"] == row["taken_for"] for row in rare)
    errors = [
        f"{group_mean('score_ranks', run, group):.2f}"
        for group in ("rare", "common", "frequent")
        for run in ("softmax", "softmax + GAP")
    ]
    assert "from {} to {} for rare classes and from {} to {} for common".format(*errors) in text
    assert "keep theirs ({} and {})".format(*errors[4:]) in text
