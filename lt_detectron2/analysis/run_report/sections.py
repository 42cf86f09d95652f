"""What a report says, section by section; each reads the folder of a run and returns blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...data.repeat_factors import auto_threshold, class_repeat_factors
from ...errors import UserError
from ...evaluation.report import format_count
from ...statistics import GROUP_NAMES, ClassStatistics
from .. import class_histogram, class_summary, confusion
from ..results import (
    GROUP_LETTERS,
    CategoryResult,
    read_categories,
    read_detections,
    read_ground_truth,
)
from ..style import save
from . import curves
from .document import Block, Code, Figure, Folded, Gallery, Number, Numbers, Remark, Table, Text
from .examples import draw_examples
from .run_folder import CONFIG_FILE, Evaluation, RunFolder, flattened

NUM_EXAMPLES = 4
NUM_CONFUSIONS = 15
FIGURES = "report"
"""Folder of the pictures."""


def lead(run: RunFolder) -> list[Block]:
    """The numbers that a reader looks for first."""
    blocks: list[Block] = []
    for evaluation in run.evaluations:
        partitions = evaluation.content.get("groups", [])
        sizes = partitions[0]["categories_with_annotations"] if partitions else {}
        for task, results in evaluation.results.items():
            names = ["AP", *(f"AP{letter}" for letter in GROUP_LETTERS)]
            names = [name for name in names if name in results] or list(results)[:6]
            of = f"{evaluation.dataset}, " if len(run.evaluations) > 1 else ""
            blocks.append(Numbers([_number(of + task, n, results[n], sizes) for n in names]))
    return blocks or [Remark("The run has not been evaluated: there is no AP yet.")]


def _number(task: str, name: str, value: float | None, sizes: Mapping[str, int]) -> Number:
    letter = name.removeprefix("AP")
    group = GROUP_LETTERS.get(letter, "")
    note = f"{sizes[letter]} classes" if letter in sizes else ""
    return Number(f"{task} {name}" + (f", {group}" if group else ""), _percent(value), note, group)


def results(run: RunFolder) -> list[Block]:
    """AP by group and class, with counts."""
    blocks: list[Block] = []
    for evaluation in run.evaluations:
        blocks += _results_of(run, evaluation)
    return blocks or [Remark("The run has not been evaluated.")]


def _results_of(run: RunFolder, evaluation: Evaluation) -> list[Block]:
    content = evaluation.content
    metrics = list(dict.fromkeys(name for of in evaluation.results.values() for name in of))
    rows = [
        [task, *(_percent(of.get(name)) for name in metrics)]
        for task, of in evaluation.results.items()
    ]
    blocks: list[Block] = [
        Text(
            f"`{evaluation.dataset}`: {content.get('num_images', 0):,} images, "
            f"{content.get('num_annotations', 0):,} annotations. All metrics in percent; n/a where "
            "there is nothing to measure."
        ),
        Table(["task", *metrics], rows),
    ]
    if not evaluation.rows:
        return blocks
    blocks.append(_group_table(evaluation))
    if "bootstrap" in content:
        table = _bootstrap_table(content["bootstrap"])
        blocks.append(Folded("Bootstrap intervals over the images", [table]))
    task, _, metric = evaluation.metric_columns[0].rpartition("_")
    points = [
        (_group(row), _count(row["train_images"]), _value(row[f"{task}_{metric}"]))
        for row in evaluation.rows
        if row["train_images"] != "n/a"
    ]
    if any(group for group, _, _ in points):
        path = run.path / FIGURES / f"ap_by_count_{evaluation.dataset}.png"
        caption = "Each dot is a class; dashed lines are the means of the groups."
        picture = save(curves.ap_by_count_figure(points, task), path)
        blocks.append(Figure(picture, caption))
    blocks.append(Folded(f"All {len(evaluation.rows)} classes", [_class_table(evaluation)]))
    return blocks


def _group_table(evaluation: Evaluation) -> Table:
    rows_of = {"all": evaluation.rows}
    for name in GROUP_NAMES:
        rows_of[name] = [row for row in evaluation.rows if _group(row) == name]
    rows = []
    for name, of in rows_of.items():
        if not of:
            continue
        counts = sorted(_count(row["train_images"]) for row in of)
        is_known = all(row["train_images"] != "n/a" for row in of)
        values = [[_value(row[column]) for row in of] for column in evaluation.metric_columns]
        rows.append(
            [
                f"[{name[0]}]" if name != "all" else name,
                str(len(of)),
                f"{counts[0]:,}–{counts[-1]:,}" if is_known else "n/a",
                f"{sum(_count(row['val_instances']) for row in of):,}",
                *map(_mean, values),
            ]
        )
    metrics = [column.replace("_", " ") for column in evaluation.metric_columns]
    header = ["group", "classes", "training images", "validation objects", *metrics]
    return Table(header, rows)


def _bootstrap_table(bootstrap: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Table:
    rows = [
        [task, name, *(_percent(fields[key]) for key in ("value", "standard_error", "low", "high"))]
        for task, of in bootstrap.items()
        for name, fields in of.items()
    ]
    header = ["task", "metric", "value", "standard error", "2.5 %", "97.5 %"]
    return Table(header, rows, num_texts=2)


def _class_table(evaluation: Evaluation) -> Table:
    counts = ["train_images", "train_instances", "val_images", "val_instances"]
    ordered = sorted(evaluation.rows, key=lambda row: _count(row["train_images"]))
    rows = [
        [
            row["name"].replace("_", " "),
            _group_cell(row),
            *(row[name] for name in counts),
            *(_percent(_value(row[column])) for column in evaluation.metric_columns),
        ]
        for row in ordered
    ]
    titles = ["training images", "objects", "validation images", "objects"]
    metrics = [column.replace("_", " ") for column in evaluation.metric_columns]
    return Table(["class", "group", *titles, *metrics], rows, num_texts=2)


def confusions(run: RunFolder) -> list[Block]:
    """What the tail is taken for."""
    evaluation = _first_evaluation(run)
    ground_truth, detections = _read(run, evaluation)
    categories = read_categories(evaluation.folder)
    counted = confusion.confuse(ground_truth, detections)
    top = confusion.top_confusions(counted, categories, NUM_CONFUSIONS)
    rows = [
        [
            _titled(row.category),
            format_count(row.category.train_images),
            str(row.num_objects),
            f"{100 * row.right:.0f} %",
            f"{100 * row.missed:.0f} %",
            ", ".join(f"{_titled(other)} {100 * share:.0f} %" for other, share in row.eaters),
        ]
        for row in top
    ]
    # What objects are taken for is text, but stands last: a column of its own kind.
    rows = [[row[0], row[5], *row[1:5]] for row in rows]
    header = ["class", "taken for", "training images", "validation objects", "right", "missed"]
    in_tail = any(row.category.group in confusion.TAIL_GROUPS for row in top)
    classes = "rare and common classes" if in_tail else "classes"
    blocks: list[Block] = [
        Text(
            "Every annotated object is called by the best detection on it "
            f"(IoU of at least {confusion.IOU_THRESHOLD}). These are the {classes} of which other "
            "classes eat the greatest share."
        ),
        Table(header, rows, num_texts=2),
    ]
    if detections.kept.verified_in:
        blocks.append(
            Remark(
                "Detections of classes that nobody verified in an image were not saved, so that "
                "confusions with them show as missed; LONG_TAIL.EVAL.KEEP_UNVERIFIED True keeps "
                "them."
            )
        )
    path = run.path / FIGURES / "confusion.png"
    confusion.draw(counted, categories, path, count=NUM_CONFUSIONS)
    caption = "What each class is taken for, by frequency, and the tail one by one."
    return [*blocks, Figure(path, caption)]


def examples(run: RunFolder) -> list[Block]:
    """Images with the rarest objects."""
    from detectron2.data import DatasetCatalog

    evaluation = _first_evaluation(run)
    ground_truth, detections = _read(run, evaluation)
    records = DatasetCatalog.get(evaluation.dataset)
    files = {record["image_id"]: record["file_name"] for record in records}
    categories = read_categories(evaluation.folder)
    folder = run.path / FIGURES
    pairs = draw_examples(ground_truth, detections, categories, files, folder, NUM_EXAMPLES)
    return [
        Text(
            "Validation images of the rarest classes. Shown are as many detections as there are "
            "objects, the best first and one for each object; colours are those of the groups: "
            "[r], [c], [f]."
        ),
        Gallery(["annotated", "detected"], pairs),
    ]


def training(run: RunFolder) -> list[Block]:
    """Losses, learning rate and AP over the iterations."""
    iterations, _ = curves.curve(run.entries, "total_loss")
    if not iterations:
        return [Remark("Nothing was trained in this folder.")]
    times = sorted(curves.curve(run.entries, "time")[1])
    text = f"{iterations[-1] + 1:,} iterations"
    if times:
        text += f", {times[len(times) // 2]:.2f} s each (median)"
    folder = run.path / FIGURES
    path = curves.draw_training(run.entries, folder / "training.png")
    blocks: list[Block] = [Text(text + "."), Figure(path, "Loss and learning rate.")]
    tasks = [name.removesuffix("/AP") for e in run.entries for name in e if name.endswith("/AP")]
    for task in dict.fromkeys(tasks):
        file = folder / f"ap_{task.replace('/', '_')}.png"
        figure = curves.draw_ap(run.entries, task, file)
        if figure is not None:
            blocks.append(Figure(figure, f"{task} AP at each evaluation, by group."))
    return blocks


def data(run: RunFolder) -> list[Block]:
    """The classes of the training set."""
    statistics = run.statistics
    if statistics is None:
        return [Remark("The class counts of the training set are not known here.")]
    path = run.path / FIGURES / "classes.png"
    class_histogram.draw(statistics, path)
    lines = [Text(line[:1].upper() + line[1:] + ".") for line in class_summary.describe(statistics)]
    caption = "Training images of each class, on a logarithmic axis."
    return [*lines, _statistics_table(statistics), Figure(path, caption)]


def _statistics_table(statistics: ClassStatistics) -> Table:
    groups = statistics.frequency_group()
    factors = class_repeat_factors(statistics, auto_threshold(statistics))
    total = max(int(statistics.instance_count.sum()), 1)
    rows = []
    for index, name in enumerate(GROUP_NAMES):
        members = groups == index
        if not members.any():
            continue
        images, objects = statistics.image_count[members], statistics.instance_count[members]
        rows.append(
            [
                f"[{name[0]}]",
                str(int(members.sum())),
                f"{int(images.min()):,}–{int(images.max()):,}",
                f"{int(objects.sum()):,}",
                f"{100 * int(objects.sum()) / total:.1f} %",
                f"{float(factors[members].mean()):.1f}",
            ]
        )
    header = ["group", "classes", "images of a class", "objects", "share of the objects"]
    return Table([*header, "mean repeat factor"], rows)


def config(run: RunFolder) -> list[Block]:
    """What differs from the defaults, and everything."""
    if not run.config:
        return [Remark("There is no config.yaml in the folder.")]
    default = _defaults()
    rows = [
        [f"`{key}`", _short(value), _short(default[key]) if key in default else "no such key"]
        for key, value in run.config.items()
        if value != default.get(key) and _is_used(key, run.config)
    ]
    return [
        Table(["key", "value", "default"], rows, num_texts=3),
        Folded("Complete config", [Code(run.config_text, "yaml")]),
    ]


def _defaults() -> dict[str, Any]:
    import yaml

    from ...engine.setup import load_config

    return dict(flattened(yaml.safe_load(load_config("").dump())))


def _is_used(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a key is not of a component that another one was chosen instead of."""
    parts = key.split(".")
    if len(parts) < 4 or parts[0] != "LONG_TAIL":
        return True
    chosen = values.get(".".join([*parts[:2], "NAME"]))
    if parts[1] == "SAMPLER":
        chosen = values.get("DATALOADER.SAMPLER_TRAIN")
    return chosen is None or chosen == parts[2]


def reproduction(run: RunFolder) -> list[Block]:
    """Commands, commit, machine and versions."""
    if not run.starts:
        return [
            Remark("The command was not kept. This one trains with the same config:"),
            Code(f"python train_net.py --config-file {run.path.name}/config.yaml", "sh"),
        ]
    first = run.starts[0]
    blocks: list[Block] = [Code(str(first["command"]), "sh")]
    if len(run.starts) > 1:
        rows = [[str(start["time"]), f"`{start['command']}`"] for start in run.starts]
        title = f"Started {len(run.starts)} times"
        blocks.append(Folded(title, [Table(["time", "command"], rows, num_texts=2)]))
    known = {
        **{name: first.get(name) for name in ("time", "commit", "machine", "platform", "python")},
        **first.get("packages", {}),
        "seed": run.config.get("SEED"),
    }
    rows = [[name, str(value)] for name, value in known.items() if value is not None]
    return [*blocks, Table(["", ""], rows, num_texts=2)]


def subtitle(run: RunFolder) -> str:
    """What was trained on what, in one line."""
    get = run.config.get
    train, test = (_joined(get(f"DATASETS.{split}", [])) for split in ("TRAIN", "TEST"))
    parts = [
        f"`{get('LONG_TAIL.LOSS.NAME')}`" if get("LONG_TAIL.LOSS.NAME") else "",
        f"+ `{get('LONG_TAIL.RANKING.NAME')}`" if get("LONG_TAIL.RANKING.NAME") else "",
        f"`{get('LONG_TAIL.CALIBRATION.NAME')}`" if get("LONG_TAIL.CALIBRATION.NAME") else "",
        get("DATALOADER.SAMPLER_TRAIN", ""),
        f"{get('SOLVER.MAX_ITER', 0):,} iterations" if run.entries and run.config else "",
        f"{train} → {test}" if train and test else train or test,
        str(run.starts[-1]["time"]) if run.starts else "",
    ]
    return " · ".join(part for part in parts if part)


def _first_evaluation(run: RunFolder) -> Evaluation:
    if not run.evaluations:
        raise UserError("the run has not been evaluated")
    return run.evaluations[0]


def _read(run: RunFolder, evaluation: Evaluation) -> tuple[Any, Any]:
    """Annotations and detections."""
    if run.config.get("LONG_TAIL.DATA.TRAIN") or run.config.get("LONG_TAIL.DATA.VAL"):
        from ...engine.setup import load_config

        load_config(str(run.path / CONFIG_FILE))  # registers them
    ground_truth = read_ground_truth(evaluation.folder)
    return ground_truth, read_detections(evaluation.folder)


def _titled(category: CategoryResult) -> str:
    return category.name.replace("_", " ") + (f" [{category.group[0]}]" if category.group else "")


def _group(row: Mapping[str, str]) -> str:
    return GROUP_LETTERS.get(row.get("group", ""), "")


def _group_cell(row: Mapping[str, str]) -> str:
    label = row.get("group", "n/a")
    return f"[{label}]" if label in GROUP_LETTERS else label


def _count(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _value(text: str) -> float:
    return math.nan if text == "n/a" else float(text)


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return _percent(sum(known) / len(known) if known else None)


def _percent(value: float | None) -> str:
    return "n/a" if value is None or math.isnan(value) else f"{value:.1f}"


def _joined(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _short(value: Any) -> str:
    text = f"`{value}`" if str(value) else ""
    return text if len(text) <= 80 else f"`{str(value)[:76]}…`"
