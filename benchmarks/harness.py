"""
Compares a candidate with its baselines so that a busy machine misleads as little as possible.

All contestants of a case run in turns, in one process and on the same input, and what is compared
is the ratio within a turn; then everything is repeated in fresh processes. Nothing is timed before
its result was checked. The results are appended to a CSV file of the repository, next to what they
depend on: machine, load, versions, commit and sizes.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gc
import inspect
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where all benchmarks of tensors run."""
SLOW_SECONDS = 20.0
"""A contestant that has run for so long in a process sits out the remaining turns."""
MISSED = 3
"""Exit status where a target was missed; Python itself ends with 1 or 2."""
REPEATS = 50
"""Calls in a captured CUDA graph, next to which its launch does not count."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Setting:
    """How a case is measured in each process."""

    turns: int
    threads: int
    clock: str


@dataclass(frozen=True)
class Contest:
    """
    One case, set up.

    Args:
        contestants: what is timed, by name; the first is the candidate.
        check: compares results and returns the largest error, or None if there is nothing to
            compare with; raises if it is too large.
        unit_bytes: size of the tensor in which peak memory is expressed, e.g. the logits.
    """

    contestants: Mapping[str, Callable[[], Any]]
    check: Callable[[], float | None]
    unit_bytes: int


@dataclass(frozen=True)
class Case:
    """What is measured: a function that can be pickled, and the sizes it is called with."""

    name: str
    set_up: Callable[..., Contest]
    sizes: Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A bound that the result of a case must keep; exactly one of the two limits."""

    contestant: str
    at_least: float = 0.0
    """Times that the candidate must be faster."""
    at_most: float = float("inf")
    """Times that the candidate may be slower."""


@dataclass
class Result:
    """All turns of a case, over all processes."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By contestant."""
    speedups: dict[str, list[float]] = field(default_factory=dict)
    """By contestant: its time over the candidate's in the same turn."""
    extra_tensors: dict[str, float] = field(default_factory=dict)
    """Peak of what a call allocates, its result included, in tensors of the unit's size."""
    error: float | None = None
    """The largest; None where nothing was compared."""

    def merge(self, other: Result) -> None:
        """Take in the turns of another process."""
        for mine, theirs in ((self.seconds, other.seconds), (self.speedups, other.speedups)):
            for name, values in theirs.items():
                mine.setdefault(name, []).extend(values)
        for name, peak in other.extra_tensors.items():
            self.extra_tensors[name] = max(peak, self.extra_tensors.get(name, 0.0))
        errors = [error for error in (self.error, other.error) if error is not None]
        self.error = max(errors, default=None)


def main(
    benchmark: str,
    cases: Sequence[Case],
    targets: Callable[[Case], Sequence[Target]],
    max_extra_tensors: float = float("inf"),
    is_short: Callable[[Case], bool] = lambda case: True,
) -> int:
    """
    Parse the command line, measure, print a table and append to ``results/<benchmark>.csv``.

    ``--short`` measures the cases of ``is_short`` only, in one process. The bound of memory is for
    cases with targets: next to small tensors, what does not grow with them counts too much.

    Returns:
        Exit status: ``MISSED`` if a target was missed.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes a case")
    parser.add_argument("--turns", type=int, default=7, help="turns in a process")
    parser.add_argument("--short", action="store_true", help="a few cases, in one process")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu counts the process's own time, for a busy machine without GPU",
    )
    parser.add_argument("--no-save", action="store_true", help="print the table only")
    arguments = parser.parse_args()
    processes = 1 if arguments.short else arguments.processes
    missed = []
    rows = []
    for case in cases:
        if arguments.case not in case.name or (arguments.short and not is_short(case)):
            continue
        load = os.getloadavg()[0]
        setting = Setting(arguments.turns, arguments.threads, arguments.clock)
        result = measure(case, processes, setting)
        rows += _rows(benchmark, case, result, setting, load)
        error = _error(result)
        print(f"{case.name}, " + (f"largest error {error}" if error else "nothing to compare with"))
        for row in rows[-len(result.seconds) :]:
            print(_line(row))
        candidate = next(iter(result.seconds))
        bounds = targets(case)
        if bounds and result.extra_tensors[candidate] > max_extra_tensors:
            missed.append(f"{case.name}: more than {max_extra_tensors:g} extra tensors")
        for target in bounds:
            speedup = statistics.median(result.speedups[target.contestant])
            if speedup < target.at_least or 1 / speedup > target.at_most:
                bound = target.at_least if target.at_least else 1 / target.at_most
                missed.append(
                    f"{case.name}: {speedup:.3g} x {target.contestant}, wanted {bound:.3g} x"
                )
    if not arguments.no_save:
        append(RESULTS / f"{benchmark}.csv", rows)
    for line in missed:
        print(f"missed: {line}")
    return MISSED if missed else 0


def measure(case: Case, processes: int, setting: Setting) -> Result:
    """Run a case in fresh processes, one at a time. The first of them checks the results."""
    result = Result()
    context = multiprocessing.get_context("spawn")
    for index in range(processes):
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
            future = executor.submit(_measure_here, case, setting, check=index == 0)
            result.merge(future.result())
    return result


def _measure_here(case: Case, setting: Setting, *, check: bool) -> Result:
    torch.set_num_threads(setting.threads)
    clock = CLOCKS[setting.clock]
    contest = case.set_up(**case.sizes)
    result = Result(error=contest.check() if check else None)
    names = list(contest.contestants)
    result.extra_tensors = {
        name: _peak_bytes(contest.contestants[name]) / contest.unit_bytes
        for name in names[:1]  # which warms it up as well; baselines may take minutes
    }
    result.seconds = {name: [] for name in names}
    result.speedups = {name: [] for name in names[1:]}
    for turn in range(setting.turns):
        times = {}
        for name in names if turn % 2 == 0 else reversed(names):
            if sum(result.seconds[name]) < SLOW_SECONDS:
                times[name] = _seconds(contest.contestants[name], clock)
                result.seconds[name].append(times[name])
        for name in names[1:]:
            if name in times and names[0] in times:
                result.speedups[name].append(times[name] / times[names[0]])
    return result


def _seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    gc.collect()
    _wait()
    start = clock()
    function()
    _wait()
    return clock() - start


def _peak_bytes(function: Callable[[], Any]) -> int:
    """The most memory that a call holds at a time, on top of what there was before."""
    if torch.cuda.is_available():
        _wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    how: dict[str, Any] = {"activities": [torch.profiler.ProfilerActivity.CPU]}
    if "acc_events" in inspect.signature(torch.profiler.profile).parameters:
        how["acc_events"] = True  # without it newer versions warn that events may be lost
    with torch.profiler.profile(profile_memory=True, **how) as profile:
        kept = function()  # until its own peak is over
    events = profile.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    del kept
    return peak


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---- reports


def _rows(
    benchmark: str, case: Case, result: Result, setting: Setting, load: float
) -> list[dict[str, str]]:
    common = {
        "benchmark": benchmark,
        "case": case.name,
        "sizes": " ".join(f"{name}={value}" for name, value in case.sizes.items()),
    }
    conditions = {
        "error": _error(result),
        "clock": setting.clock,
        "threads": str(setting.threads),
        "load": f"{load:.1f}",
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    rows = []
    for name, seconds in result.seconds.items():
        times = [_milliseconds(second) for second in _quartiles(seconds)]
        ratios = [f"{ratio:.3g}" for ratio in _quartiles(result.speedups.get(name, []))]
        peak = result.extra_tensors.get(name)
        measured = {
            "contestant": name,
            "runs": str(len(seconds)),
            **dict(zip(("ms_q1", "ms_median", "ms_q3"), times)),
            **dict(zip(("speedup_q1", "speedup_median", "speedup_q3"), ratios or [""] * 3)),
            "extra_tensors": "" if peak is None else f"{peak:.1f}",
        }
        rows.append({**common, **measured, **conditions})
    return rows


def _error(result: Result) -> str:
    return "" if result.error is None else f"{result.error:.1e}"


def _milliseconds(seconds: float) -> str:
    """With three digits at least."""
    value = 1e3 * seconds
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _line(row: Mapping[str, str]) -> str:
    line = f"  {row['contestant']:<16} {row['ms_median']:>10} ms ({row['ms_q1']}..{row['ms_q3']})"
    if row["speedup_median"]:
        spread = f"{row['speedup_q1']}..{row['speedup_q3']}"
        line += f"  candidate is {row['speedup_median']} x as fast ({spread})"
    if row["extra_tensors"]:
        line += f"  peak {row['extra_tensors']} extra tensors"
    return line


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return list(values) * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def append(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    if not rows:
        return
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def machine() -> str:
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()} ({name})"
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "lt_detectron2", "benchmarks")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


if __name__ == "__main__":
    sys.exit("run a benchmark, as in: python -m benchmarks.ranking")
