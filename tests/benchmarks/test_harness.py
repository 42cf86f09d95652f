"""What the benchmarks report is what was measured."""

import csv
import math
from pathlib import Path

import pytest
import torch

from benchmarks import harness, ranking
from benchmarks.harness import Case, Contest, Setting

TINY = Case(
    "tiny", ranking.set_up, {"regions": 30, "classes": 9, "positives": 6, "logits": "trained"}
)


def _contest_with_a_wrong_candidate() -> Contest:
    def check() -> float:
        raise AssertionError("differs from the baseline")

    return Contest({"candidate": _never, "baseline": _never}, check, unit_bytes=1)


def _contest_without_equal() -> Contest:
    contestants = dict.fromkeys(("candidate", "baseline"), lambda: None)
    return Contest(contestants, check=lambda: None, unit_bytes=1)


def _never() -> None:
    raise RuntimeError("timed before it was checked")


def test_peak_counts_what_a_call_holds_at_a_time():
    def function() -> torch.Tensor:
        first = torch.ones(100, 1000)
        second = first + 1
        del first
        third = second + 1  # two at a time
        return third

    assert harness._peak_bytes(function) == pytest.approx(2 * 100 * 1000 * 4, rel=0.01)


def test_ranking_case_is_checked_and_timed_in_turns():
    result = harness._measure_here(TINY, Setting(turns=3, threads=1, clock="wall"), check=True)
    assert set(result.seconds) == {"GAPLoss", "loop", "cross_entropy"}
    assert all(len(seconds) == 3 for seconds in result.seconds.values())
    assert 0 <= result.error < ranking.TOLERANCE
    for name, speedups in result.speedups.items():
        pairs = zip(result.seconds[name], result.seconds["GAPLoss"])
        assert speedups == [baseline / candidate for baseline, candidate in pairs]


def test_nothing_is_timed_that_is_wrong():
    case = Case("wrong", _contest_with_a_wrong_candidate, {})
    with pytest.raises(AssertionError, match="differs from the baseline"):
        harness._measure_here(case, Setting(turns=1, threads=1, clock="wall"), check=True)


@pytest.mark.parametrize("at_least, status", [(0.01, 0), (1e9, harness.MISSED)])
def test_missed_target_has_an_exit_status(
    at_least: float, status: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["ranking", "--no-save"])
    here = harness.Result({"GAPLoss": [1.0], "loop": [2.0]}, {"loop": [2.0]}, {"GAPLoss": 1.0})
    monkeypatch.setattr(harness, "measure", lambda *arguments: here)
    target = harness.Target("loop", at_least=at_least)
    assert harness.main("ranking", [TINY], lambda case: [target]) == status


def test_error_is_empty_where_nothing_was_compared():
    case, setting = Case("unlike", _contest_without_equal, {}), Setting(1, 1, "wall")
    result = harness._measure_here(case, setting, check=True)
    result.merge(harness.Result())
    rows = harness._rows("name", case, result, setting, load=0.5)
    assert [row["error"] for row in rows] == ["", ""]
    for error in (0.0, None):  # the latter of a process that checked nothing
        result.merge(harness.Result(error=error))
    rows = harness._rows("name", case, result, setting, load=0.5)
    assert [row["error"] for row in rows] == ["0.0e+00", "0.0e+00"]


def test_slow_baseline_sits_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness, "SLOW_SECONDS", 0.0)
    result = harness._measure_here(TINY, Setting(turns=3, threads=1, clock="wall"), check=False)
    assert not any(result.seconds.values()) and not any(result.speedups.values())


def test_short_times_keep_their_digits():
    times = [harness._milliseconds(seconds) for seconds in (2.5, 0.01234, 0.001234, 0.0000236)]
    assert times == ["2500.0", "12.3", "1.23", "0.0236"]


def test_rows_are_appended_under_one_header(tmp_path: Path):
    result = harness.Result(
        {"ours": [1.0, 2.0, 3.0], "loop": [9.0]}, {"loop": [4.5]}, {"ours": 2.0}
    )
    result.merge(harness.Result({"loop": [11.0]}, {"loop": [5.5]}, {"ours": 3.0}, 1e-7))
    path = tmp_path / "results.csv"
    for _ in range(2):
        rows = harness._rows("name", TINY, result, Setting(3, 1, "wall"), load=0.5)
        harness.append(path, rows)
    with path.open(encoding="utf-8") as file:
        ours, loop, *again = csv.DictReader(file)
    assert len(again) == 2
    assert (ours["ms_q1"], ours["ms_median"], ours["ms_q3"]) == ("1500.0", "2000.0", "2500.0")
    assert (ours["extra_tensors"], ours["error"], loop["runs"]) == ("3.0", "1.0e-07", "2")
    assert math.isclose(float(loop["speedup_median"]), 5.0) and not ours["speedup_median"]
    assert "regions=30 classes=9" in ours["sizes"] and ours["machine"] and ours["commit"]
