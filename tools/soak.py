#!/usr/bin/env python3
"""
Train and evaluate for hours and say whether memory, files or shared memory grow.

    python tools/soak.py --minutes 120
    python tools/soak.py --minutes 3 --config configs/SynthLT/seesaw_smoke.yaml

The smallest training runs, with workers and with an evaluation every few iterations, and is watched
from outside through /proc. Printed are slopes in MiB an hour, of the best straight line through the
samples after the warm-up, and what was left behind at the end. Memory of workers is that of the
training's own, sampled between evaluations. Samples go to a CSV.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20
SECONDS_TO_END = 120
ENDS_WELL = (0, 128 + signal.SIGTERM)
FIELDS = ("seconds", "main_mib", "workers_mib", "workers", "files", "shared_mib")


def children(pid: int) -> list[int]:
    """Processes below this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found += [child, *children(child)]
    return found


def resident(pids: Iterable[int]) -> float:
    """MiB of memory that these processes have in use."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * PAGE / MIB


def shared_memory() -> dict[str, int]:
    """Bytes of each file in /dev/shm."""
    found = {}
    for path in Path("/dev/shm").glob("*"):
        try:
            found[path.name] = path.stat().st_size
        except OSError:
            continue
    return found


def sample(pid: int, start: float, before: dict[str, int]) -> dict[str, float]:
    """What the training uses now."""
    workers = children(pid)
    shared = sum(size for name, size in shared_memory().items() if name not in before)
    return {
        "seconds": round(time.monotonic() - start, 1),
        "main_mib": round(resident([pid]), 2),
        "workers_mib": round(resident(workers), 2),
        "workers": len(workers),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "shared_mib": round(shared / MIB, 2),
    }


def slope(seconds: Sequence[float], values: Sequence[float]) -> float:
    """Change an hour of the best straight line."""
    mean_x, mean_y = sum(seconds) / len(seconds), sum(values) / len(values)
    spread = sum((x - mean_x) ** 2 for x in seconds)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in zip(seconds, values))
    return 3600 * rise / spread if spread else 0.0


def watch(command: Sequence[str], minutes: float, period: float) -> tuple[list[dict], int, str]:
    """Samples of a training until the time is up, its exit status, and what it left behind."""
    before = shared_memory()
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    samples = []
    try:
        while process.poll() is None and time.monotonic() - start < 60 * minutes:
            time.sleep(period)
            if process.poll() is None:
                samples.append(sample(process.pid, start, before))
        below = children(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(SECONDS_TO_END)
    finally:
        process.kill()
    for _ in range(SECONDS_TO_END // 4):  # workers look after their parent every few seconds
        left = [f"process {pid}" for pid in below if Path(f"/proc/{pid}").exists()]
        left += [f"/dev/shm/{name}" for name in shared_memory() if name not in before]
        if not left:
            break
        time.sleep(1)
    return samples, process.returncode, ", ".join(left) or "nothing"


def report(samples: Sequence[dict], warm_up: float) -> list[str]:
    """Lines about the samples after the warm-up, a share of the time."""
    kept = samples[int(len(samples) * warm_up) :]
    minutes = (kept[-1]["seconds"] - kept[0]["seconds"]) / 60
    lines = [f"{len(kept)} samples of {minutes:.1f} minutes"]
    # Evaluations have workers of their own for a while; those of the training live as long as it.
    fewest = min(entry["workers"] for entry in kept)
    for name in FIELDS[1:]:
        alone = name == "workers_mib"
        chosen = [entry for entry in kept if not alone or entry["workers"] == fewest]
        seconds = [entry["seconds"] for entry in chosen]
        values = [entry[name] for entry in chosen]
        unit = "MiB" if name.endswith("_mib") else ""
        lines.append(
            f"{name:<12} {min(values):8.1f} to {max(values):8.1f} {unit:<3} "
            f"slope {slope(seconds, values):+.2f} {unit} an hour"
        )
    return lines


def logged_entries(path: Path) -> int:
    """Lines of a file of metrics; none where the training ended before it wrote one."""
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--config", default="configs/SynthLT/eqlv2_smoke.yaml")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--eval-period", type=int, default=50)
    parser.add_argument("--sample-seconds", type=float, default=2.0)
    parser.add_argument("--warm-up", type=float, default=1 / 3, help="share of the time left out")
    parser.add_argument("--csv", help="where the samples go")
    parser.add_argument("overrides", nargs="*", help="KEY VALUE of the config")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train_net.py", "--config-file", options.config]
        command += ["OUTPUT_DIR", folder, "SOLVER.MAX_ITER", "100000000", "SOLVER.BASE_LR", "0.01"]
        command += ["TEST.EVAL_PERIOD", str(options.eval_period)]
        command += ["DATALOADER.NUM_WORKERS", str(options.workers), *options.overrides]
        samples, status, left = watch(command, options.minutes, options.sample_seconds)
        lines = logged_entries(Path(folder, "metrics.json"))
    if options.csv:
        with open(options.csv, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(samples)
    if samples:
        print("\n".join(report(samples, options.warm_up)))
    print(f"{lines} entries logged; the training ended with status {status}; left behind: {left}")
    return 0 if left == "nothing" and status in ENDS_WELL else 1


if __name__ == "__main__":
    sys.exit(main())
