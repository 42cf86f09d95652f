"""Where the numbers of a training go: the writers that ``LONG_TAIL.WRITERS`` lists."""

from __future__ import annotations

import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ..errors import ConfigError
from .full_disk import naming

METRICS_FILE = "metrics.json"
CSV_FILE = "metrics.csv"
WANDB_ID_FILE = "wandb_run_id.txt"
WINDOW_SIZE = 20
"""Iterations whose median smooths a noisy number, as in Detectron2."""


class ScalarWriter(EventWriter):
    """A writer that is given every scalar once: ``write_scalars(iteration, values by name)``."""

    def __init__(self) -> None:
        self._last_iteration = -1

    def write(self) -> None:
        scalars: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(WINDOW_SIZE)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_iteration:
                scalars[iteration][name] = value
        for iteration in sorted(scalars):
            self.write_scalars(iteration, scalars[iteration])
            self._last_iteration = iteration

    def write_scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Write the scalars of an iteration."""
        raise NotImplementedError


class CSVWriter(ScalarWriter):
    """
    A line for each number, ``iteration,name,value``, which any spreadsheet pivots into curves.

    Not all numbers exist in all iterations: losses come often, AP at evaluations. A file that is
    there, of the part of the training before a resumption, is continued.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self._file_handle = open(path, "a", encoding="utf-8")
        if not self._file_handle.tell():
            self._file_handle.write("iteration,name,value\n")

    def write_scalars(self, iteration: int, values: dict[str, float]) -> None:
        for name, value in sorted(values.items()):
            self._file_handle.write(f"{iteration},{name},{value:.8g}\n")
        self._file_handle.flush()

    def close(self) -> None:
        self._file_handle.close()


class WandbWriter(ScalarWriter):
    """
    Weights & Biases, if ``wandb`` is installed.

    Its environment variables hold: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and so on. A training
    that resumes continues the run of its folder.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        import wandb

        id_file = Path(cfg.OUTPUT_DIR, WANDB_ID_FILE)
        id = id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lt_detectron2"),
            name=Path(cfg.OUTPUT_DIR).name,
            dir=cfg.OUTPUT_DIR,
            config=yaml.safe_load(cfg.dump()),
            id=id,
            resume="allow",
        )
        id_file.write_text(f"{self._run.id}\n", encoding="utf-8")

    def write_scalars(self, iteration: int, values: dict[str, float]) -> None:
        self._run.log(values, step=iteration)

    def close(self) -> None:
        self._run.finish()


class FlushedTensorboardWriter(TensorboardXWriter):
    """Detectron2's, which else leaves the latest numbers in memory for up to two minutes."""

    def write(self) -> None:
        super().write()
        self._writer.flush()


_FACTORIES: dict[str, Callable[[CfgNode, int], EventWriter]] = {
    "terminal": lambda cfg, max_iter: CommonMetricPrinter(max_iter),
    "json": lambda cfg, max_iter: JSONWriter(os.path.join(cfg.OUTPUT_DIR, METRICS_FILE)),
    "tensorboard": lambda cfg, max_iter: FlushedTensorboardWriter(cfg.OUTPUT_DIR),
    "csv": lambda cfg, max_iter: CSVWriter(os.path.join(cfg.OUTPUT_DIR, CSV_FILE)),
    "wandb": lambda cfg, max_iter: WandbWriter(cfg),
}
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_writers(names: Sequence[str]) -> None:
    """Raise ConfigError for a writer that does not exist, or whose package is not installed."""
    for name in names:
        if name not in _FACTORIES:
            raise ConfigError(
                f"LONG_TAIL.WRITERS names {name!r}, expected some of: {', '.join(_FACTORIES)}"
            )
        package = _PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"LONG_TAIL.WRITERS names {name!r}, whose package is not installed: "
                f"pip install {package}, or leave it out of the list"
            )


def build_writers(cfg: CfgNode, max_iter: int) -> list[EventWriter]:
    """The writers of ``LONG_TAIL.WRITERS``, in its order. For the main process."""
    check_writers(cfg.LONG_TAIL.WRITERS)
    return [_FACTORIES[name](cfg, max_iter) for name in cfg.LONG_TAIL.WRITERS]


class WriteAfterEvaluation(hooks.PeriodicWriter):
    """
    Detectron2's hook, which writes also where something was measured.

    Writers look at the latest value of each number only: of evaluations between two of Detectron2's
    writes, all but the last would be lost.

    Args:
        hook: Detectron2's, whose writers and period this one takes over.
        periods: iterations between measurements; 0 is never.
    """

    def __init__(self, hook: hooks.PeriodicWriter, periods: Sequence[int]):
        super().__init__(hook._writers, hook._period)
        self._measuring = [period for period in periods if period > 0]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        regular = done % self._period == 0 or done == self.trainer.max_iter
        if regular or any(done % period == 0 for period in self._measuring):
            self._write()

    def after_train(self) -> None:
        self._write()
        for writer in self._writers:
            with naming(_file_of(writer)):
                writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            with naming(_file_of(writer)):
                writer.write()


def _file_of(writer: EventWriter) -> str:
    """What an error of it should name."""
    file = getattr(writer, "_file_handle", None)
    return f"a file of {type(writer).__name__}" if file is None else file.name
