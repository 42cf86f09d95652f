"""
LVIS evaluation at a fortieth, a tenth, a quarter and all of the size of LVIS v1 val.

    python -m benchmarks.evaluation --quick                    # a fortieth: a minute
    python -m benchmarks.evaluation --shares 0.1 0.25 1        # half an hour, 11 GB

On generated detections (19,809 images with 300 each), four ways to the metrics of boxes:

    columns    saved columns and cached annotations to all metrics, this package
    pipeline   Instances of each image to all metrics and files, this package's evaluator
    detectron2 the same Instances to metrics with Detectron2's LVISEvaluator
    official   results JSON and annotation JSON to metrics with the `lvis` package

and

    masks      saved run lengths and annotations in memory to all metrics of "segm", up to a tenth
    bootstrap  samples of the images for intervals
    files      collecting detections with masks of 128 B while a model runs, in files
    memory     the same in memory, as without an output folder

Each measurement is a process of its own; its peak memory includes the interpreter and libraries.
Nothing is written unless AP is the same for both ways from saved boxes and for both ways from
Instances. The official package needs about 22 GB for all of LVIS v1 val, so it and Detectron2 run
up to `--official-up-to`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[1]
IMAGES = 19_809
"""Of LVIS v1 val."""
CATEGORIES = 1203
OBJECTS_PER_IMAGE = 12.35
DETECTIONS_PER_IMAGE = 300
SAMPLES = 100
"""Of the images, for the time of one."""
CONTESTANTS = (
    *("columns", "pipeline", "detectron2", "official", "masks", "bootstrap"),
    *("files", "memory"),
)
COMPILED = ("columns", "pipeline", "masks", "bootstrap")
"""What numba makes faster where it is installed, see `lt_detectron2/evaluation/kernels.py`."""
MASKS_UP_TO = 0.1
"""Share of LVIS v1 val for which masks are generated."""
SAME_INPUT = (("columns", "official"), ("pipeline", "detectron2"))
TOLERANCE = 1e-9
"""Of AP in percent."""


def main() -> int:
    """Measure, print a line for each process, compare, append to the CSV file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 1.0])
    parser.add_argument("--quick", action="store_true", help="a fortieth of LVIS v1 val only")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--official-up-to", type=float, default=0.25, help="share of LVIS v1 val")
    parser.add_argument("--runs", type=int, default=3, help="processes for each number")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process:
        contestant, folder = arguments.process
        print(json.dumps(FUNCTIONS[contestant](Path(folder))))
        return 0
    rows = []
    for share in [1 / 40] if arguments.quick else arguments.shares:
        with tempfile.TemporaryDirectory() as folder:
            limits = dict.fromkeys(("detectron2", "official"), arguments.official_up_to)
            limits["masks"] = MASKS_UP_TO
            written = [c for c in arguments.contestants if share <= limits.get(c, 1)]
            write_case(Path(folder), round(share * IMAGES), with_results="official" in written)
            rows += measure(Path(folder), share, written, arguments.runs)
    if not arguments.no_save:
        from benchmarks import harness

        harness.append(harness.RESULTS / "evaluation.csv", rows)
    return 0


def measure(folder: Path, share: float, contestants: list[str], runs: int) -> list[dict[str, str]]:
    """One row for each contestant: the median of its runs."""
    from benchmarks import harness  # not at the top: it loads torch, which contestants may not need

    rows, values = [], {}
    for contestant in contestants:
        outcomes = [run_process(contestant, folder) for _ in range(1 if share == 1 else runs)]
        outcome = sorted(outcomes, key=lambda o: o["seconds"])[len(outcomes) // 2]
        if outcome["AP"] is not None:
            values[contestant] = outcome["AP"]
        row = {
            "contestant": contestant,
            "share": f"{share:g}",
            "images": str(round(share * IMAGES)),
            "detections": str(round(share * IMAGES) * DETECTIONS_PER_IMAGE),
            "runs": str(len(outcomes)),
            "seconds": f"{outcome['seconds']:.2f}",
            "cpu_seconds": f"{outcome['cpu_seconds']:.2f}",
            "peak_mib": f"{max(o['peak'] for o in outcomes) / 2**20:.0f}",
            "before_mib": f"{outcome['before'] / 2**20:.0f}",
            "AP": "" if outcome["AP"] is None else f"{outcome['AP']:.6f}",
            "note": outcome["note"],
            "load": f"{os.getloadavg()[0]:.1f}",
            "machine": harness.machine(),
            "numpy": np.__version__,
            "numba": _numba() if contestant in COMPILED else "",
            "commit": harness.commit(),
            "date": time.strftime("%Y-%m-%d"),
        }
        rows.append(row)
        print(
            f"{share:>6g} {contestant:<11} {row['seconds']:>8} s (cpu {row['cpu_seconds']} s), "
            f"peak {row['peak_mib']} MiB, {row['before_mib']} before; {row['note']}",
            flush=True,
        )
    for pair in SAME_INPUT:
        known = [values[contestant] for contestant in pair if contestant in values]
        if known and max(known) - min(known) > TOLERANCE:
            raise SystemExit(f"expected the same AP from {pair}, got {known}: nothing was written")
    return rows


def _numba() -> str:
    """The version that compiles, empty if none does."""
    from lt_detectron2.evaluation import kernels

    return version("numba") if kernels.available() else ""


def run_process(contestant: str, folder: Path) -> dict[str, Any]:
    """The outcome of a contestant in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.evaluation", "--process", contestant, str(folder)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contestant} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- generated data


def write_case(folder: Path, num_images: int, with_results: bool) -> None:
    """Annotations as JSON and cached index, detections as npz, and, on request, as results JSON."""
    from lt_detectron2.evaluation import Detections, load_ground_truth

    dataset, columns = generate(num_images)
    (folder / "annotations.json").write_text(json.dumps(dataset))
    np.savez(folder / "detections.npz", **columns)
    load_ground_truth(str(folder / "annotations.json"), "lvis")
    if with_results:
        with open(folder / "results.json", "w", encoding="utf-8") as file:
            separator = "["
            for entry in Detections.from_columns(columns).results():
                file.write(separator + json.dumps(entry))
                separator = ","
            file.write("]")


def generate(num_images: int, seed: int = 0) -> tuple[dict, dict[str, np.ndarray]]:
    """
    A federated set with long-tailed categories, and detections of a mediocre model.

    Of the detections 28 % are near an object and of its category, 5 % of a category that was
    verified absent, and the rest of any category, mostly unverified; 8 % of the scores are tied.
    """
    rng = np.random.default_rng(seed)
    frequency = np.arange(1, CATEGORIES + 1) ** -1.1
    frequency /= frequency.sum()
    num_objects = round(num_images * OBJECTS_PER_IMAGE)
    image = np.sort(rng.integers(0, num_images, num_objects))
    # Images have few categories with several objects each.
    present = rng.choice(CATEGORIES, size=(num_images, 4), p=frequency)
    category = present[image, rng.integers(0, 4, num_objects)]
    sides = np.exp(rng.normal(3.6, 1.0, (num_objects, 2))).clip(3, 400)
    corners = rng.random((num_objects, 2)) * (np.array([640, 480]) - np.minimum(sides, [600, 440]))
    boxes = np.concatenate([corners, sides], axis=1).round(2)
    absent = [np.unique(rng.choice(CATEGORIES, 10, p=frequency)) for _ in range(num_images)]
    partial = rng.random(num_images) < 0.1
    dataset = {
        "images": [
            {
                "id": row + 1,
                "height": 480,
                "width": 640,
                "neg_category_ids": (absent[row] + 1).tolist(),
                "not_exhaustive_category_ids": [int(present[row, 0]) + 1] * int(partial[row]),
            }
            for row in range(num_images)
        ],
        "annotations": [
            {"id": row + 1, "image_id": i + 1, "category_id": c + 1, "bbox": box, "area": area}
            for row, (i, c, box, area) in enumerate(
                zip(
                    image.tolist(),
                    category.tolist(),
                    boxes.tolist(),
                    (0.7 * boxes[:, 2] * boxes[:, 3]).tolist(),
                )
            )
        ],
        "categories": [
            {"id": c + 1, "name": f"category {c}", "frequency": "fcr"[min(2, c // 400)]}
            for c in range(CATEGORIES)
        ],
    }

    number = num_images * DETECTIONS_PER_IMAGE
    of_image = np.repeat(np.arange(num_images), DETECTIONS_PER_IMAGE)
    objects = np.bincount(image, minlength=num_images)
    first = np.cumsum(objects) - objects
    near = first[of_image] + (rng.random(number) * objects[of_image].clip(min=1)).astype(int)
    near = near.clip(max=num_objects - 1)
    kind = rng.random(number)
    is_near = (objects[of_image] > 0) & (kind < 0.28)
    wrong = np.array([ids[int(rng.random() * len(ids))] for ids in absent])[of_image]
    classes = np.where(kind < 0.33, wrong, rng.integers(0, CATEGORIES, number))
    classes = np.where(is_near, category[near], classes)
    noise = rng.normal(0, 1, (number, 4)) * np.exp(rng.normal(-2.2, 1, (number, 1)))
    found = boxes[near]
    found[:, :2] += noise[:, :2] * found[:, 2:]
    found[:, 2:] *= np.exp(noise[:, 2:])
    far = rng.random(number) < 0.3
    found[far, :2] = rng.random((np.count_nonzero(far), 2)) * [500, 400]
    scores = rng.random(number) ** 3
    quality = np.exp(-np.abs(noise).sum(axis=1)) * rng.random(number)
    scores = np.where(is_near, 0.5 * scores + 0.5 * quality, scores)
    scores = np.where(rng.random(number) < 0.08, scores.round(2), scores)
    columns = {
        "image_ids": of_image + 1,
        "category_ids": (classes + 1).astype(np.int32),
        "scores": scores.astype(np.float32),
        "boxes": found.astype(np.float32),
    }
    return dataset, columns


# ---- contestants, each in a process of its own


class Stopwatch:
    """Times a contestant; what is set up before `start` does not count."""

    def __init__(self):
        self._before = peak_memory()
        self._start = time.perf_counter(), time.process_time()

    def outcome(self, ap: float | None, note: str = "") -> dict[str, Any]:
        """Seconds and bytes since it was made; AP in percent."""
        wall, cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        peak = peak_memory()
        times = {"seconds": wall, "cpu_seconds": cpu}
        return {**times, "peak": peak, "before": self._before, "AP": ap, "note": note}


def peak_memory() -> int:
    """Bytes that this process held at most so far."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Not ru_maxrss, which starts with the size of the parent process.
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def from_columns(folder: Path) -> dict[str, Any]:
    from lt_detectron2 import evaluation

    stopwatch = Stopwatch()
    index, _ = evaluation.load_ground_truth(str(folder / "annotations.json"), "lvis")
    detections = evaluation.Detections.load(str(folder / "detections.npz"))
    loaded = time.perf_counter() - stopwatch._start[0], peak_memory()
    matches = evaluation.match(index, detections)
    curves = evaluation.precision_recall(matches)
    numbers = evaluation.summarize(curves, evaluation.groups_from_frequency(index))
    note = f"of it loading {loaded[0]:.2f} s; {loaded[1] / 2**20:.0f} MiB after loading"
    return stopwatch.outcome(100 * numbers["AP"], note)


def from_instances(folder: Path, make: Callable[[str, str], Any]) -> dict[str, Any]:
    """An evaluator over the detections image by image, from a set of the folder's annotations."""
    from detectron2.data import MetadataCatalog

    name = "evaluation_benchmark"
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=str(folder / "annotations.json"), thing_classes=[])
    classes = {c + 1: c for c in range(CATEGORIES)}
    metadata.thing_dataset_id_to_contiguous_id = classes
    images = list(model_outputs(folder))
    stopwatch = Stopwatch()
    evaluator = make(name, str(folder / "output"))
    evaluator.reset()
    for inputs, outputs in images:
        evaluator.process(inputs, outputs)
    processed = time.perf_counter() - stopwatch._start[0]
    results = evaluator.evaluate()
    note = f"of it images {processed:.2f} s"
    return stopwatch.outcome(float(results["bbox"]["AP"]), note)


def model_outputs(folder: Path) -> Iterator[tuple[list[dict], list[dict]]]:
    """What a model would give for each image."""
    import torch
    from detectron2.structures import Boxes, Instances

    with np.load(folder / "detections.npz") as file:
        columns = {name: file[name] for name in file.files}
    corners = columns["boxes"].copy()
    corners[:, 2:] += corners[:, :2]
    for first in range(0, len(corners), DETECTIONS_PER_IMAGE):
        rows = slice(first, first + DETECTIONS_PER_IMAGE)
        instances = Instances((480, 640))
        instances.pred_boxes = Boxes(torch.from_numpy(corners[rows]))
        instances.scores = torch.from_numpy(columns["scores"][rows])
        instances.pred_classes = torch.from_numpy(columns["category_ids"][rows].astype(int) - 1)
        yield [{"image_id": int(columns["image_ids"][first])}], [{"instances": instances}]


def pipeline(folder: Path) -> dict[str, Any]:
    from lt_detectron2.evaluation import LongTailLVISEvaluator

    return from_instances(
        folder, lambda name, output: LongTailLVISEvaluator(name, ("bbox",), output_dir=output)
    )


def detectron2(folder: Path) -> dict[str, Any]:
    from detectron2.evaluation import LVISEvaluator

    from lt_detectron2.evaluation.oracle import numpy_of_2022

    with numpy_of_2022():
        return from_instances(
            folder, lambda name, output: LVISEvaluator(name, ("bbox",), output_dir=output)
        )


def official(folder: Path) -> dict[str, Any]:
    import lvis

    from lt_detectron2.evaluation.oracle import numpy_of_2022

    with numpy_of_2022():
        stopwatch = Stopwatch()
        annotations = lvis.LVIS(str(folder / "annotations.json"))
        results = lvis.LVISResults(annotations, str(folder / "results.json"), max_dets=300)
        evaluation = lvis.LVISEval(annotations, results, "bbox")
        evaluation.run()
        return stopwatch.outcome(100 * float(evaluation.results["AP"]))


def masks(folder: Path) -> dict[str, Any]:
    from lt_detectron2 import evaluation

    dataset = json.loads((folder / "annotations.json").read_text())
    for entry, polygon in zip(
        dataset["annotations"], octagons(np.array([e["bbox"] for e in dataset["annotations"]]))
    ):
        entry["segmentation"] = [polygon]
    index = evaluation.GroundTruth.from_lvis(dataset, with_masks=True)
    detections = evaluation.Detections.load(str(folder / "detections.npz"))
    sizes = np.tile([480, 640], (len(detections), 1))
    polygons = [[polygon] for polygon in octagons(detections.boxes.astype(float))]
    codes = evaluation.RunLengthMasks.from_segmentations(polygons, sizes)
    detections = replace(detections, masks=codes)
    del dataset, polygons
    stopwatch = Stopwatch()
    matches = evaluation.match(index, detections, iou_type="segm")
    curves = evaluation.precision_recall(matches)
    numbers = evaluation.summarize(curves, evaluation.groups_from_frequency(index))
    return stopwatch.outcome(100 * numbers["AP"], f"{len(codes.counts) / len(codes):.0f} B a mask")


def octagons(boxes: np.ndarray) -> list[list[float]]:
    """(N, 4) boxes with their corners cut off, as polygons inside the image."""
    corners = np.array([0.3, 0, 0.7, 0, 1, 0.3, 1, 0.7, 0.7, 1, 0.3, 1, 0, 0.7, 0, 0.3])
    x = boxes[:, :1] + corners[::2] * boxes[:, 2:3].clip(min=1)
    y = boxes[:, 1:2] + corners[1::2] * boxes[:, 3:].clip(min=1)
    return np.stack([x.clip(0, 640), y.clip(0, 480)], axis=2).reshape(len(boxes), -1).tolist()


def bootstrap(folder: Path) -> dict[str, Any]:
    from lt_detectron2 import evaluation

    index, _ = evaluation.load_ground_truth(str(folder / "annotations.json"), "lvis")
    detections = evaluation.Detections.load(str(folder / "detections.npz"))
    matches = evaluation.match(index, detections)
    groups = evaluation.groups_from_frequency(index)
    outcomes = evaluation.Outcomes.from_matches(index, matches, groups)
    stopwatch = Stopwatch()
    ap = evaluation.intervals(outcomes, SAMPLES)["AP"]
    note = f"{SAMPLES} samples: AP {100 * ap.value:.2f}, {100 * ap.low:.2f} to {100 * ap.high:.2f}"
    return stopwatch.outcome(None, note)


def collect(folder: Path, output: str | None) -> dict[str, Any]:
    """The peak is that while detections come; the note tells how much reading them adds."""
    from lt_detectron2.evaluation import Detections, RunLengthMasks
    from lt_detectron2.evaluation.collected import CollectedDetections
    from lt_detectron2.evaluation.detections import Kept

    everything = Detections.load(str(folder / "detections.npz"))
    lengths = np.full(DETECTIONS_PER_IMAGE, 128)
    sizes = np.tile(np.int32([480, 640]), (DETECTIONS_PER_IMAGE, 1))
    stopwatch = Stopwatch()
    collected = CollectedDetections(output, Kept())
    for first in range(0, len(everything), DETECTIONS_PER_IMAGE):
        part = everything.take(np.arange(first, first + DETECTIONS_PER_IMAGE))
        codes = np.full(lengths.sum(), ord("0"), dtype=np.uint8)
        masks = RunLengthMasks(codes, np.cumsum(lengths) - lengths, lengths, sizes.copy())
        collected.append(replace(part, masks=masks))
    outcome = stopwatch.outcome(None)
    found = collected.read()
    added = (peak_memory() - outcome["peak"]) / 2**20
    del collected
    return {**outcome, "note": f"{added:.0f} MiB more to read all {len(found):,}"}


FUNCTIONS = {
    "columns": from_columns,
    "pipeline": pipeline,
    "detectron2": detectron2,
    "official": official,
    "masks": masks,
    "bootstrap": bootstrap,
    "files": lambda folder: collect(folder, str(folder)),
    "memory": lambda folder: collect(folder, None),
}

if __name__ == "__main__":
    sys.exit(main())
