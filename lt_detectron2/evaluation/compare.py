"""
Is one run better than another, or were the images kind to it?

    python -m lt_detectron2.evaluation.compare output/softmax output/eqlv2 --samples 1000

Both runs are measured on the same samples of the images, so what is difficult about an image
cancels out in the difference. A run is its output folder after evaluation, or a file
outcomes_<task>.npz.
"""

import argparse
import json
import logging
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import replacing
from .bootstrap import Interval, WeightedAP, bootstrap, weighted_numbers
from .evaluation_files import OUTCOMES_FILE
from .groups import CategoryGroups
from .metrics import mean
from .outcomes import Outcomes
from .report import format_number, text_table


@dataclass(frozen=True)
class Comparison:
    """
    One metric of two runs, in [0, 1].

    Args:
        first: of the first run.
        second: of the second run.
        difference: second minus first and its spread over samples of the images.
        share_better: share of the samples in which the second run is better, after the samples'
            bias has been taken off.
    """

    first: float
    second: float
    difference: Interval
    share_better: float


def compare(
    first: Outcomes, second: Outcomes, num_samples: int = 1000, *, seed: int = 0
) -> dict[str, Comparison]:
    """
    Metrics of two runs and of their difference.

    Both are averaged over the same groups of classes, those of `run_with_groups`.

    Raises:
        UserError: they were measured on other annotations or under other caps, there are no samples
            to draw, or the seed is negative.
    """
    if num_samples < 1:
        raise UserError(
            f"expected at least one sample of the images, got {num_samples}: ask for more"
        )
    if seed < 0:
        raise UserError(f"expected a seed of at least 0, got {seed}: choose another")
    for what, one, other in (
        ("annotations", first.fingerprint, second.fingerprint),
        ("caps", first.protocol, second.protocol),
    ):
        if one != other:
            raise UserError(
                f"expected two runs with the same {what}, they have {one!r} and {other!r}: "
                "evaluate both again in the same way"
            )
    partitions = (first, second)[run_with_groups(first, second)].partitions
    runs = [replace(run, partitions=partitions) for run in (first, second)]
    ones = np.ones(first.num_images)
    values = [weighted_numbers(WeightedAP(run), ones) for run in runs]
    samples = bootstrap(runs, num_samples, seed=seed)
    comparisons = {}
    for name in values[0]:
        one, other = values[0][name], values[1][name]
        differences = samples[1][name] - samples[0][name]
        interval = Interval.of(other - one, differences)
        better = mean((differences - interval.bias > 0)[~np.isnan(differences)])
        comparisons[name] = Comparison(one, other, interval, better)
    return comparisons


def compare_categories(
    first: Outcomes, second: Outcomes, num_samples: int = 1000, *, seed: int = 0
) -> tuple[dict[str, Comparison], list[Comparison]]:
    """
    As `compare`, and the AP of each of the K categories, on the same samples.

    Returns:
        the metrics by name, and one comparison for each category.

    Raises:
        UserError: as `compare`.
    """
    count = first.num_categories
    each = CategoryGroups(tuple(f"#{i}" for i in range(count)), np.arange(count), "itself")
    runs = (replace(run, partitions=(*run.partitions, each)) for run in (first, second))
    comparisons = compare(*runs, num_samples, seed=seed)
    categories = [comparisons.pop(f"AP{name}") for name in each.names]
    return comparisons, categories


def run_with_groups(first: Outcomes, second: Outcomes) -> int:
    """
    Which of two runs, 0 or 1, says what the groups are: the one that knows more partitions.

    A run that was evaluated without counts of its training set knows fewer, or none.
    """
    known = [sum((g.index >= 0).any() for g in run.partitions) for run in (first, second)]
    return int(known[1] > known[0])


def describe_groups(first: Outcomes, second: Outcomes) -> list[str]:
    """Lines that say where the groups come from, and whose they are if the runs have others."""
    chosen = run_with_groups(first, second)
    lines = [
        f"groups from {g.source}" + (f": {g.rule}" if g.rule else "")
        for g in (first, second)[chosen].partitions
    ]
    groups = [[(g.names, g.index.tolist()) for g in run.partitions] for run in (first, second)]
    if groups[0] != groups[1]:
        whose = ("first", "second")[chosen]
        lines.append(
            f"the runs were evaluated with other groups of classes: those of the {whose} are used "
            "for both"
        )
    return lines


def find_outcomes(run: str, task: str) -> Path:
    """The outcomes of a run: the file itself, or that of a task in its output folder."""
    path, name = Path(run), OUTCOMES_FILE.format(task=task)
    candidates = [path, path / name, path / "inference" / name]
    return next((p for p in candidates if p.is_file()), candidates[-1])


def comparison_table(comparisons: dict[str, Comparison], labels: tuple[str, str]) -> str:
    """One line for each metric, in percent."""
    rows = []
    for name, comparison in comparisons.items():
        change = comparison.difference
        numbers = (comparison.first, comparison.second, change.value, change.standard_error)
        share = format_number(100 * comparison.share_better, 0)
        ends = (format_number(100 * end) for end in (change.low, change.high))
        rows.append([name, *(format_number(100 * n) for n in numbers), *ends, share])
    header = ["metric", *labels, "difference", "std. error", "2.5 %", "97.5 %", "better in %"]
    return text_table(header, rows)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="compare", description=__doc__.strip().splitlines()[0])
    parser.add_argument("first", help="output folder of a run, or its outcomes_<task>.npz")
    parser.add_argument("second", help="of the run that may be better")
    parser.add_argument("--task", default="bbox", help="bbox, segm, boundary, bbox_fixed, ...")
    parser.add_argument("--samples", type=int, default=1000, help="of the images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="also write the numbers to this JSON file, in percent")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        paths = [find_outcomes(run, options.task) for run in (options.first, options.second)]
        runs = [Outcomes.load(str(path)) for path in paths]
        comparisons = compare(*runs, options.samples, seed=options.seed)
    except UserError as error:
        sys.exit(f"error: {error}")
    labels = tuple(Path(run).name or run for run in (options.first, options.second))
    lines = [
        f"{options.task}, {runs[0].num_images:,} images, {runs[0].protocol}",
        *describe_groups(*runs),
        comparison_table(comparisons, labels),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.output:
        with replacing(options.output) as file:
            content = {name: in_percent(asdict(c)) for name, c in comparisons.items()}
            file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def in_percent(value: float | dict) -> float | dict | None:
    """Numbers in [0, 1], also in dicts, for JSON; None for nan."""
    if isinstance(value, dict):
        return {key: in_percent(entry) for key, entry in value.items()}
    return None if math.isnan(value) else 100 * value


if __name__ == "__main__":
    main()
