"""Trainings as child processes: several at a time, with progress, taken up where they stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.5
QUIET_PERIOD = 30.0
"""Seconds between two progress lines where nobody sees a bar move."""

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
SECONDS_FILE = "wall_seconds.txt"


class RunFailed(RuntimeError):
    """A training ended with an error; the message holds the end of its log."""


@dataclass
class Run:
    """
    One training with evaluation.

    Attributes:
        name: what to call it on the screen.
        config: config file, relative to the repository.
        folder: OUTPUT_DIR.
        overrides: further config keys and values.
        eval_only: nothing is trained; the overrides name MODEL.WEIGHTS.
    """

    name: str
    config: str
    folder: Path
    overrides: list[str] = field(default_factory=list)
    eval_only: bool = False

    @property
    def results_file(self) -> Path:
        return self.folder / "inference" / "results.json"

    @property
    def is_done(self) -> bool:
        is_trained = self.eval_only or (self.folder / "model_final.pth").is_file()
        return self.results_file.is_file() and is_trained

    def results(self) -> dict[str, dict[str, float]]:
        """Metrics in percent by task, of a finished run."""
        return json.loads(self.results_file.read_text(encoding="utf-8"))["results"]

    def seconds_per_iteration(self) -> float:
        """Median over the run, of a finished run."""
        times = sorted(entry["time"] for entry in self._metrics() if "time" in entry)
        return times[len(times) // 2] if times else float("nan")

    def seconds(self) -> float:
        """Wall-clock time of the process, training and evaluation, over all its resumptions."""
        path = self.folder / SECONDS_FILE
        return float(path.read_text(encoding="utf-8")) if path.is_file() else 0.0

    def add_seconds(self, seconds: float) -> None:
        """Count time that a process of this run took."""
        path = self.folder / SECONDS_FILE
        path.write_text(f"{self.seconds() + seconds:.1f}\n", encoding="utf-8")

    def progress(self) -> tuple[int, str]:
        """Iterations done, and the latest loss as text."""
        latest = next((e for e in reversed(self._metrics()) if "total_loss" in e), None)
        if latest is None:
            return 0, ""
        return int(latest["iteration"]) + 1, f"loss {latest['total_loss']:.3f}"

    def _metrics(self) -> list[dict]:
        path = self.folder / "metrics.json"
        if not path.is_file():
            return []
        entries = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                pass  # the last line, still being written
        return entries


def exit_status(work: Callable[[], object]) -> int:
    """Do the work of a program; say what stopped it without a traceback. 0, 1 or 130."""
    try:
        work()
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def execute(runs: Sequence[Run], max_iterations: int) -> None:
    """
    Do the runs that are not done yet, one on each GPU, or as many at a time as there are CPU cores.

    Each run resumes from its last checkpoint. Ctrl-C stops all of them; a later call goes on.

    Raises:
        RunFailed: a training failed. The others are stopped.
    """
    waiting = [run for run in runs if not run.is_done]
    if not waiting:
        return
    cores = os.cpu_count() or 1
    free: list[str | None] = [*_gpus()] or [None] * cores
    threads = max(1, cores // min(len(free), len(waiting)))
    active: dict[str, tuple[Run, subprocess.Popen, tqdm]] = {}
    started: dict[str, float] = {}
    gpus: dict[str, str | None] = {}
    waiting.reverse()
    position = 0
    last_line = time.monotonic()
    try:
        while waiting or active:
            while waiting and free:
                run = waiting.pop()
                bar = tqdm(
                    total=max_iterations,
                    desc=f"{run.name:<24}",
                    position=position,
                    unit="it",
                    disable=None,
                    bar_format="{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} "
                    "[{elapsed}<{remaining}] {postfix}",
                )
                position += 1
                gpu = gpus[run.name] = free.pop(0)
                active[run.name] = (run, _start(run, threads, gpu), bar)
                started[run.name] = time.monotonic()
            time.sleep(POLL_SECONDS)
            for name, (run, process, bar) in list(active.items()):
                done, loss = run.progress()
                bar.n = done
                bar.set_postfix_str(loss if done < max_iterations else "evaluating")
                if process.poll() is not None:
                    bar.close()
                    del active[name]
                    free.append(gpus[name])
                    run.add_seconds(time.monotonic() - started[name])
                    if process.returncode or not run.is_done:
                        raise RunFailed(explain_failure(run))
            if not sys.stderr.isatty() and time.monotonic() - last_line > QUIET_PERIOD:
                last_line = time.monotonic()
                for run, _, _ in active.values():
                    done, loss = run.progress()
                    print(f"{run.name}: {done}/{max_iterations} {loss}", flush=True)
    finally:
        for run, process, bar in active.values():
            bar.close()
            process.terminate()
            run.add_seconds(time.monotonic() - started[run.name])
        for _, process, _ in active.values():
            process.wait()


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get(VISIBLE_GPUS)
    return names.split(",")[:count] if names else [str(index) for index in range(count)]


def _start(run: Run, threads: int, gpu: str | None) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    mode = "--eval-only" if run.eval_only else "--resume"
    command = [sys.executable, str(REPOSITORY / "train_net.py"), mode]
    command += ["--config-file", str(REPOSITORY / run.config)]
    command += ["OUTPUT_DIR", str(run.folder), *run.overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if gpu is not None:
        environment[VISIBLE_GPUS] = gpu  # a run takes the first one that it sees
    with (run.folder / "console.txt").open("ab") as console:
        return subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT, env=environment)


def explain_failure(run: Run) -> str:
    """The end of the log of a run."""
    lines = (run.folder / "console.txt").read_text(errors="replace").splitlines()
    end = "\n  ".join(lines[-12:])
    return f"{run.name} failed; the end of {run.folder / 'console.txt'}:\n  {end}"
