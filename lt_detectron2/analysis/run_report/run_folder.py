"""What lies in the output folder of a run, as the report reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from ...evaluation.evaluation_files import PER_CATEGORY_FILE, RESULTS_FILE
from ...statistics import ClassStatistics
from ..provenance import read_starts
from ..results import read_rows
from .curves import read_metrics

CONFIG_FILE = "config.yaml"
STATISTICS_FILE = "class_statistics.json"
KNOWN_COLUMNS = (
    *("mid", "category_id", "name", "group", "bin"),
    *("train_images", "train_instances", "val_images", "val_instances"),
)
"""Columns of per_category.csv that are no metric."""


@dataclass(frozen=True)
class Evaluation:
    """Results on one set; ``folder`` holds them."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        return self.content["dataset"]

    @property
    def results(self) -> Mapping[str, Mapping[str, float | None]]:
        """Metrics in percent by task, None where there is nothing to measure."""
        return self.content["results"]

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """Lines of per_category.csv; none if the file is gone."""
        path = self.folder / PER_CATEGORY_FILE
        return read_rows(path) if path.is_file() else []

    @property
    def metric_columns(self) -> list[str]:
        """Columns of :attr:`rows` that are metrics, such as "bbox_AP50"."""
        return [name for name in (self.rows[0] if self.rows else {}) if name not in KNOWN_COLUMNS]


@dataclass(frozen=True)
class RunFolder:
    """
    The output folder of a training or evaluation.

    Raises:
        UserError: there is no such folder, or nothing of ours in it.
    """

    path: Path

    def __post_init__(self) -> None:
        known = (CONFIG_FILE, "metrics.json", "inference")
        if not any((self.path / name).exists() for name in known):
            raise UserError(
                f"{str(self.path)!r} is not the output folder of a run: expected {CONFIG_FILE} and "
                "metrics.json in it, which train_net.py writes to OUTPUT_DIR"
            )

    @cached_property
    def config_text(self) -> str:
        """config.yaml, or nothing."""
        path = self.path / CONFIG_FILE
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """All keys by their dotted names."""
        # Detectron2 writes tuples with a tag of their own in places.
        return dict(flattened(yaml.load(self.config_text, Loader=_TupleLoader) or {}))

    @cached_property
    def statistics(self) -> ClassStatistics | None:
        """Counts of the training set, where they are known."""
        path = self.path / STATISTICS_FILE
        if path.is_file():
            state = json.loads(path.read_text(encoding="utf-8"))
            return ClassStatistics.from_state_dict(state)
        source = self.config.get("LONG_TAIL.STATISTICS")
        if not source:
            return None
        from ...data.statistics import read_statistics

        return read_statistics(source)

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """What the training logged, by iteration."""
        return read_metrics(self.path)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """One for each set that the run was evaluated on."""
        inference = self.path / "inference"
        files = [inference / RESULTS_FILE, *sorted(inference.glob(f"*/{RESULTS_FILE}"))]
        return [
            Evaluation(file.parent, json.loads(file.read_text(encoding="utf-8")))
            for file in files
            if file.is_file()
        ]

    @cached_property
    def starts(self) -> Sequence[Mapping[str, Any]]:
        """How the run was started, and where."""
        return read_starts(self.path)


def flattened(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a nested config by their dotted names."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


class _TupleLoader(yaml.SafeLoader):
    pass


_TupleLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node)
)
