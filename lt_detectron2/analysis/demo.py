"""
See a plain detector miss the rare classes and a long-tail one find them, on generated images.

    python -m lt_detectron2.analysis.demo      four minutes on two CPU cores
    python -m lt_detectron2.analysis.demo --seeds 0 1 2 --methods softmax eqlv2 eqlv2_rfs

Trains the methods with the same seeds and schedule, evaluates them by the LVIS metric, prints a
table and writes report.md and report.html. What is finished is not trained again; --fresh deletes
the runs of these methods and seeds first, and nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from . import ap_by_count, class_histogram, predictions
from .run_report.document import Code, Document, Figure, Section, Table, write_document
from .runs import Run, exit_status
from .study import LABELS, make_runs, results_rows, results_table, train_all


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)

    def work() -> None:
        start = time.monotonic()
        report = run_demo(
            arguments.profile,
            arguments.methods,
            arguments.seeds,
            Path(arguments.output),
            arguments.overrides,
            fresh=arguments.fresh,
        )
        print(f"\n{report}  ({(time.monotonic() - start) / 60:.1f} minutes)")

    return exit_status(work)


def run_demo(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    overrides: Sequence[str] = (),
    fresh: bool = False,
) -> Path:
    """Generate, train, evaluate and report; returns the path of the report."""
    output = output.resolve()
    runs = make_runs(profile, methods, seeds, output, overrides)
    if fresh:  # not the whole folder, in which other trainings may lie
        for run in chain.from_iterable(runs.values()):
            if run.folder.exists():
                shutil.rmtree(run.folder)
    train_all(profile, runs)
    table = results_table(runs)
    print("3. Box AP in percent, over all, rare, common and frequent classes\n")
    print(table)
    return _write_report(output, profile, runs)


def _write_report(output: Path, profile: str, runs: Mapping[str, Sequence[Run]]) -> Path:
    from detectron2.data import DatasetCatalog

    from ..data import datasets  # noqa: F401
    from ..data.statistics import read_statistics

    figures = output / "figures"
    header, rows = results_rows(runs)
    baseline, method = list(runs)[0], list(runs)[-1]
    folders = (runs[baseline][0].folder, runs[method][0].folder)
    labels = (LABELS.get(baseline, baseline), LABELS.get(method, method))
    statistics = read_statistics(str(folders[0] / "class_statistics.json"))
    title = f"SynthLT {profile}: {statistics.num_images} images"
    class_histogram.draw(statistics, figures / "classes.png", title)
    ap_by_count.draw(*folders, labels, figures / "ap_by_count.png")
    records = DatasetCatalog.get(f"synthlt_{profile}_val")
    predictions.draw(folders, labels, records, figures / "predictions.png")
    commands = "\n".join(
        f"python train_net.py --config-file {run.config} OUTPUT_DIR {run.folder.name} "
        + " ".join(run.overrides)
        for repeated in runs.values()
        for run in repeated
    )
    document = Document(
        title=f"SynthLT {profile}: {labels[0]} against {labels[1]}",
        subtitle="Box AP in percent on the validation set, by the LVIS metric: over all classes, "
        "and over the rare (up to 10 training images), common (up to 100) and frequent ones.",
        lead=[Table(header, rows, num_texts=1)],
        sections=[
            Section("Data", [Figure(figures / "classes.png", "Training images of every class.")]),
            Section(
                "AP of every class",
                [
                    Figure(
                        figures / "ap_by_count.png",
                        f"From {labels[0]} (grey) to {labels[1]} (coloured).",
                    )
                ],
            ),
            Section(
                "Examples",
                [
                    Figure(
                        figures / "predictions.png",
                        "The validation images on which the two differ most; labels end in the "
                        "class's group (r, c, f). Each panel shows as many detections as there are "
                        "objects, the best first.",
                    )
                ],
            ),
            Section("To train a row by hand", [Code(commands, "sh")]),
        ],
    )
    return write_document(document, output)[0]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="demo", choices=["smoke", "demo"])
    parser.add_argument("--methods", nargs="+", default=["softmax", "eqlv2"], choices=LABELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", default="output/demo")
    parser.add_argument("--fresh", action="store_true", help="delete these runs first")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="config keys and values")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
