"""
From the start of a training's processes to the first batch, on annotations of the size of LVIS.

    python -m benchmarks.data --quick      # a twentieth: two minutes
    python -m benchmarks.data              # 100,000 images, 1.27 million annotations: 15 minutes

Contestants, each with one and with two processes on this machine, two workers of the loader each:

    libraries   import everything, load nothing
    detectron2  Detectron2's loader with repeat-factor sampling; every process parses
    cold        counting and this package's loader, nothing kept from an earlier training
    warm        the same again, with what the cold start has kept

Memory is summed over all processes: PSS, in which a page that n processes share counts as 1/n for
each, at its peak and at the first batch, and USS, what would be free if they ended. Nothing is
written unless all contestants give the same images in the first batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BENCHMARK = "data"
IMAGES, ANNOTATIONS = 100_000, 1_270_000
CLASSES = 1203
"""Detectron2's loader of LVIS files knows the categories of LVIS v1 only."""
POLYGONS = 2000
"""Different outlines; the annotations take turns."""
FILES = 16
"""Different images."""
WORKERS = 2
NAME = "lvis_v1_benchmark"
CONTESTANTS = ("libraries", "detectron2", "cold", "warm")
WITH_BATCH = CONTESTANTS[1:]


def main() -> int:
    """Measure, print a line for each contestant, compare batches, append to the CSV file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data")
    parser.add_argument("--share", type=float, default=1.0, help="of the size of LVIS")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the size, one run")
    parser.add_argument("--runs", type=int, default=3, help="starts for each number")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        contestant, folder, processes = arguments.job
        run_job(contestant, Path(folder), int(processes))
        return 0
    share, runs = (0.05, 1) if arguments.quick else (arguments.share, arguments.runs)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), share)
        rows = measure(Path(folder), share, arguments.contestants, arguments.processes, runs)
    if not arguments.no_save:
        from benchmarks import harness

        harness.append(harness.RESULTS / f"{BENCHMARK}.csv", rows)
    return 0


def measure(
    folder: Path, share: float, contestants: list[str], processes: list[int], runs: int
) -> list[dict[str, str]]:
    """A row for each contestant and number of processes: medians of the runs."""
    from benchmarks import harness  # not at the top: it loads torch, which counts for a job

    rows = []
    for number in processes:
        batches = {}
        for contestant in contestants:
            load = os.getloadavg()[0]
            outcomes = [start_job(contestant, folder, number) for _ in range(runs)]
            if contestant in WITH_BATCH:
                batches[contestant] = outcomes[0]["images"]
            row = {
                "contestant": contestant,
                "processes": str(number),
                "share": f"{share:g}",
                "images": str(round(share * IMAGES)),
                "annotations": str(round(share * ANNOTATIONS)),
                "json_mib": _mib((folder / "annotations.json").stat().st_size),
                "runs": str(runs),
                "seconds": f"{statistics.median(o['seconds'] for o in outcomes):.1f}",
                **{
                    f"{kind}_mib": _mib(statistics.median(o[kind] for o in outcomes))
                    for kind in ("peak_pss", "pss", "uss")
                },
                "load": f"{load:.1f}",
                "machine": harness.machine(),
                "torch": harness.torch.__version__,
                "commit": harness.commit(),
                "date": time.strftime("%Y-%m-%d"),
            }
            rows.append(row)
            print(
                f"{share:>5g} {number} processes {contestant:<10} {row['seconds']:>6} s to the "
                f"first batch; PSS {row['peak_pss_mib']} MiB at its peak, {row['pss_mib']} at the "
                f"first batch; USS {row['uss_mib']} MiB",
                flush=True,
            )
        if any(batch != next(iter(batches.values())) for batch in batches.values()):
            raise SystemExit(f"expected the same first batch from all, got {batches}")
    return rows


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f}"


# ---- generated data


def write_dataset(folder: Path, share: float, seed: int = 0) -> None:
    """Annotations in LVIS format, as long as those of LVIS v1 are, and a few images."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    num_images, num_annotations = round(share * IMAGES), round(share * ANNOTATIONS)
    frequency = np.arange(1, CLASSES + 1) ** -1.1
    categories = 1 + rng.choice(CLASSES, num_annotations, p=frequency / frequency.sum())
    images = np.sort(rng.integers(num_images, size=num_annotations))
    sizes = np.exp(rng.normal(3.5, 0.6, POLYGONS)).clip(3, 400).astype(int)
    shapes = []
    for points in sizes.tolist():
        polygon = (rng.random(2 * points) * 400).round(2)
        x, y = polygon[::2], polygon[1::2]
        box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        shapes.append(
            f'"segmentation": {json.dumps([polygon.tolist()])}, "area": {box[2] * box[3]:.2f}, '
            f'"bbox": {json.dumps([round(float(v), 2) for v in box])}'
        )
    (folder / "train2017").mkdir()
    for index in range(FILES):
        pixels = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train2017" / f"{index}.jpg")
    with open(folder / "annotations.json", "w", encoding="utf-8") as file:
        file.write('{"images": [')
        for id in range(num_images):
            file.write(
                f'{", " if id else ""}{{"id": {id}, "height": 480, "width": 640, "coco_url": '
                f'"http://images.cocodataset.org/train2017/{id % FILES}.jpg", '
                f'"neg_category_ids": [{id % 1000 + 1}], "not_exhaustive_category_ids": []}}'
            )
        file.write('], "annotations": [')
        for id, (image, category) in enumerate(zip(images.tolist(), categories.tolist())):
            file.write(
                f'{", " if id else ""}{{"id": {id}, "image_id": {image}, "category_id": {category},'
                f" {shapes[id % POLYGONS]}}}"
            )
        entries = [{"id": c, "name": f"c{c}", "synset": f"c{c}"} for c in range(1, CLASSES + 1)]
        file.write(f'], "categories": {json.dumps(entries)}}}')


# ---- a job, and what is seen of it from outside


def start_job(contestant: str, folder: Path, processes: int) -> dict:
    """Start the processes of a training, wait for their first batches, look at their memory."""
    if contestant == "cold":
        for cache in [*folder.glob("*.records"), *folder.glob("*.class_statistics.json")]:
            cache.unlink()
    for file in folder.glob("ready.*"):
        file.unlink()
    (folder / "done").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.data", "--job", contestant, str(folder)]
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **os.environ}
    start = time.perf_counter()
    root = Path(__file__).resolve().parents[1]
    with open(folder / "log", "w", encoding="utf-8") as log:
        job = subprocess.Popen(
            [*command, str(processes)], cwd=root, env=environment, stdout=log, stderr=log
        )
        peak, last = 0, 0.0
        while len(ready := list(folder.glob("ready.*"))) < processes:
            if job.poll() is not None:
                raise SystemExit(f"{contestant} failed:\n{(folder / 'log').read_text()[-3000:]}")
            if time.perf_counter() - last > 0.3:
                peak, last = max(peak, memory(job.pid)[0]), time.perf_counter()
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        time.sleep(1)  # workers make some batches in advance
        pss, uss = memory(job.pid)
        (folder / "done").touch()
        job.wait()
    images = {file.name: json.loads(file.read_text()) for file in sorted(ready)}
    return {
        **{"seconds": seconds, "peak_pss": max(peak, pss), "pss": pss, "uss": uss},
        "images": images,
    }


def memory(root: int) -> tuple[int, int]:
    """Bytes of PSS and USS of a process and all that it started."""
    pss = uss = 0
    waiting = [root]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            for line in (process / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    pss += int(line.split()[1])
                elif line.startswith("Private_"):
                    uss += int(line.split()[1])
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # it has just ended
    return 1024 * pss, 1024 * uss


def run_job(contestant: str, folder: Path, processes: int) -> None:
    """In the job's own process."""
    from lt_detectron2.engine.launch import launch

    launch(train, processes, dist_url="auto", args=(contestant, folder))


def train(contestant: str, folder: Path) -> None:
    """What each process of a training does before its first step, but for the model."""
    from detectron2.data import build_detection_train_loader
    from detectron2.data.datasets import register_lvis_instances
    from detectron2.data.datasets.lvis import get_lvis_instances_meta
    from detectron2.utils import comm

    from lt_detectron2.data.build import build_train_loader
    from lt_detectron2.data.statistics import prepare_statistics
    from lt_detectron2.engine.setup import load_config

    # The name must begin with lvis_v1 for the loader to find its categories.
    register_lvis_instances(
        NAME, get_lvis_instances_meta("lvis_v1"), str(folder / "annotations.json"), f"{folder}/"
    )
    cfg = load_config(
        "",
        ["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", "()", "MODEL.MASK_ON", "True"]
        + ["MODEL.ROI_HEADS.NUM_CLASSES", str(CLASSES), "SOLVER.IMS_PER_BATCH", "4"]
        + ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "MODEL.DEVICE", "cpu"]
        + ["DATALOADER.REPEAT_THRESHOLD", "0.001", "DATALOADER.NUM_WORKERS", str(WORKERS)]
        + ["INPUT.MASK_FORMAT", "polygon"],
    )
    images, batches = [], None
    np.random.seed(0)  # from which the sampler is seeded
    if contestant != "libraries":
        if contestant == "detectron2":
            loader = build_detection_train_loader(cfg)
        else:
            prepare_statistics(cfg)
            loader = build_train_loader(cfg)
        batches = iter(loader)
        images = [image["image_id"] for image in next(batches)]
    ready = folder / f"ready.{comm.get_rank()}"
    (folder / f"part.{comm.get_rank()}").write_text(json.dumps(images))
    (folder / f"part.{comm.get_rank()}").rename(ready)
    while not (folder / "done").exists():
        time.sleep(0.05)
    del batches


if __name__ == "__main__":
    sys.exit(main())
