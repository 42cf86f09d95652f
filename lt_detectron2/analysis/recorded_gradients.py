"""What figures read of a training that has recorded its gradients (LONG_TAIL.GRADIENT_PERIOD)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..engine.gradient_record import GRADIENTS_FILE, GradientRecord
from ..errors import UserError
from ..statistics import ClassStatistics
from .program import add_runs, figure_parser, labels_of


@dataclass(frozen=True)
class RecordedRun:
    """The gradients of a training, the counts of its training set, and what to call it."""

    label: str
    record: GradientRecord
    statistics: ClassStatistics


def read_run(run: str | Path, label: str) -> RecordedRun:
    """
    Read the output folder of a training.

    Raises:
        UserError: it has recorded no gradients, or has no counts.
    """
    from ..data.statistics import read_statistics

    record = GradientRecord.load(Path(run) / GRADIENTS_FILE)
    statistics = read_statistics(str(Path(run) / "class_statistics.json"))
    if not len(record.iterations) or record.sums.shape[-1] != statistics.num_classes:
        raise UserError(
            f"{run} has {len(record.iterations)} snapshots of {record.sums.shape[-1]} classes, "
            f"expected some of {statistics.num_classes}: train again with LONG_TAIL.GRADIENT_PERIOD"
        )
    return RecordedRun(label, record, statistics)


def check_same_classes(runs: list[RecordedRun]) -> ClassStatistics:
    """The counts that all runs share; raises UserError if they were trained on different ones."""
    first = runs[0].statistics
    for run in runs[1:]:
        if run.statistics.fingerprint() != first.fingerprint():
            raise UserError(
                f"{run.label} was trained on other class counts than {runs[0].label}: draw runs of "
                "one training set together"
            )
    return first


def drawing_of_arguments(
    name: str, description: str, draw: Callable[[list[RecordedRun], str], Path]
) -> Callable[[], Path]:
    """
    What the program of a figure of such runs has to do, as its command line says.

    Args:
        name: of its module.
        description: the module's docstring.
        draw: from the runs and a path to the figure there.
    """
    parser = figure_parser(name, description)
    add_runs(parser)
    arguments = parser.parse_args()

    def work() -> Path:
        runs = [read_run(*run) for run in zip(arguments.runs, labels_of(arguments))]
        return draw(runs, arguments.output)

    return work
