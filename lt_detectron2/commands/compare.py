"""
Is one run better than another, and for which classes?

    lt-detectron2 compare output/softmax output/eqlv2 --output comparison

Both are measured on the same samples of the validation images. A difference whose interval holds
zero may be chance; the others are called clear, if ten images or more show the class. Chance alone
makes about one class in twenty clear.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..analysis.class_differences import ClassDifference
    from ..evaluation.compare import Comparison
    from ..evaluation.outcomes import Outcomes

TABLE_FILE, NUMBERS_FILE = "comparison.md", "comparison.json"
DIFFERENCES_FIGURE, COUNTS_FIGURE = "differences.png", "ap_by_count.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="output folder of an evaluated run, the baseline")
    parser.add_argument("second", help="output folder of the run that may be better")
    parser.add_argument("--task", default="bbox", help="bbox (default), segm, boundary, ...")
    parser.add_argument("--samples", type=int, default=1000, help="of the images (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--output", help="folder for comparison.md, .json and figures")


def run(arguments: argparse.Namespace) -> int:
    from ..analysis.class_differences import difference_table
    from ..evaluation.compare import (
        compare_categories,
        comparison_table,
        describe_groups,
        find_outcomes,
        run_with_groups,
    )
    from ..evaluation.outcomes import Outcomes

    folders = (arguments.first, arguments.second)
    outcomes = [Outcomes.load(str(find_outcomes(run, arguments.task))) for run in folders]
    metrics, categories = compare_categories(*outcomes, arguments.samples, seed=arguments.seed)
    labels = _labels(*folders)
    classes = _classes(folders[run_with_groups(*outcomes)], categories, outcomes[0])
    text = "\n".join(
        [
            f"{arguments.task}, {outcomes[0].num_images:,} images, {outcomes[0].protocol}",
            *describe_groups(*outcomes),
            "",
            comparison_table(metrics, labels),
            "\nAP of each class in percent, the classes with most training images first\n",
            difference_table(classes, labels),
            f"\n{_verdict(metrics['AP'], classes, labels)}",
        ]
    )
    print(text)
    if arguments.output:
        _write(Path(arguments.output), text, metrics, classes, labels, folders, arguments.task)
    return 0


def _labels(first: str, second: str) -> tuple[str, str]:
    names = tuple(Path(run).name or run for run in (first, second))
    return names if names[0] != names[1] else (first, second)


def _classes(run: str, categories: list[Comparison], outcomes: Outcomes) -> list[ClassDifference]:
    """The categories with what the run's per_category.csv says of them."""
    from ..analysis.ap_by_count import read_categories
    from ..analysis.class_differences import ClassDifference
    from ..evaluation.bootstrap import Interval

    try:
        known = list(read_categories(run).values())
    except (OSError, KeyError, ValueError):
        known = []  # a bare file of outcomes has no names
    val_images, val_objects = (counts.tolist() for counts in outcomes.annotation_counts())
    classes = []
    for index, comparison in enumerate(categories):
        category = known[index] if len(known) == len(categories) else None
        change = comparison.difference
        classes.append(
            ClassDifference(
                name=category.name if category else f"class {index}",
                group=category.group if category else "",
                train_images=category.train_images if category else -1,
                val_images=val_images[index],
                val_objects=val_objects[index],
                first=100 * comparison.first,
                second=100 * comparison.second,
                difference=Interval(*(100 * value for value in asdict(change).values())),
            )
        )
    return sorted(classes, key=lambda c: -c.train_images)


def _verdict(overall: Comparison, classes: list[ClassDifference], labels: tuple[str, str]) -> str:
    from ..analysis.class_differences import MIN_IMAGES

    low, high = (100 * end for end in (overall.difference.low, overall.difference.high))
    better = sum(c.is_clear and c.difference.value > 0 for c in classes)
    worse = sum(c.is_clear and c.difference.value < 0 for c in classes)
    judged = sum(c.has_enough_images for c in classes)
    if low > 0:
        what = f"{labels[1]} is better than {labels[0]} on these images"
    elif high < 0:
        what = f"{labels[1]} is worse than {labels[0]} on these images"
    else:
        what = f"These images do not tell {labels[1]} from {labels[0]}"
    return (
        f"{what}: the difference of AP lies in {low:.1f} to {high:.1f}. Of {judged} classes in "
        f"{MIN_IMAGES} images or more (of {len(classes)}) {better} clearly better, {worse} clearly "
        "worse, about 5 % by chance alone. Another seed of the training may move both runs by as "
        "much; train each method with two or three."
    )


def _write(
    folder: Path,
    text: str,
    metrics: dict[str, Comparison],
    classes: list[ClassDifference],
    labels: tuple[str, str],
    runs: tuple[str, str],
    task: str,
) -> None:
    from ..analysis import ap_by_count, class_differences
    from ..evaluation.compare import in_percent

    figures = [class_differences.draw(classes, labels, folder / DIFFERENCES_FIGURE).name]
    has_counts = any(c.train_images >= 0 for c in classes)
    if task == "bbox" and has_counts and all(map(_has_table, runs)):
        figures.append(ap_by_count.draw(*runs, labels, folder / COUNTS_FIGURE).name)
    pictures = "\n\n".join(f"![{Path(name).stem}]({name})" for name in figures)
    title = f"# {labels[1]} against {labels[0]}"
    (folder / TABLE_FILE).write_text(f"{title}\n\n{text}\n\n{pictures}\n", encoding="utf-8")
    numbers = {
        "metrics": {name: in_percent(asdict(c)) for name, c in metrics.items()},
        "classes": [_without_nan({**asdict(c), "is_clear": c.is_clear}) for c in classes],
    }
    content = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / NUMBERS_FILE).write_text(f"{content}\n", encoding="utf-8")
    print(f"\nWritten to {folder}: {', '.join([TABLE_FILE, NUMBERS_FILE, *figures])}")


def _has_table(run: str) -> bool:
    return Path(run, "inference", "per_category.csv").is_file()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
