"""
The papers' tables: which config each row is, what was reported, what was measured here.

    python -m lt_detectron2.analysis.papers list eqlv2      rows, their configs, reported numbers
    python -m lt_detectron2.analysis.papers page            docs/papers.md anew

Many rows of ablation tables have no file of their own: `configs/grids.yaml` says how they differ
from one. `write` makes the file and prints its path, so that such a row is trained by

    python train_net.py --config-file \\
        $(python -m lt_detectron2.analysis.papers write rog_table_a2/row6)

Reported numbers are data, `docs/papers/*.csv`, in the papers' own digits. What was measured here
is in `docs/papers/measured.csv`, and nowhere else.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from ..errors import ConfigError
from .grids import GRIDS, expand
from .runs import REPOSITORY, exit_status

TABLES = REPOSITORY / "docs" / "papers"
PAGE = REPOSITORY / "docs" / "papers.md"
CONFIGS = REPOSITORY / "configs"
GRID = "grid"
"""In the column "config" of a row that `configs/grids.yaml` describes."""

DESCRIPTION = ("row", "label", "config", "note")
"""Columns of a table that are no metrics."""

INTRODUCTION = """# The papers' tables, as configs

Written by `python -m lt_detectron2.analysis.papers page` from [papers/](papers/); edit that.

**Reported** numbers are the papers' own, digit for digit; nothing here reproduces them yet.
**Measured here** is empty until somebody trains the config and adds a line to
[papers/measured.csv](papers/measured.csv), with seed, commit, machine and command.

Rows with a file are trained with it. The others are written from
[configs/grids.yaml](../configs/grids.yaml) first, which `write` does:

```
python -m lt_detectron2.analysis.papers list eqlv2_table6
python train_net.py --config-file \\
    $(python -m lt_detectron2.analysis.papers write eqlv2_table6/bags_eqlv2)
```

Second stages start from the output of another row: the config's `MODEL.WEIGHTS` names it. For all:

- Schedules count images with at least one annotation (99,388 in LVIS v1, 56,740 in v0.5). With
  RFS, an epoch of the official samplers is longer; the iterations here are those of random
  sampling.
- Backbones are Detectron2's own (BGR images, caffe style), where most papers have torchvision's.
- `SOLVER.REFERENCE_WORLD_SIZE` is the number of GPUs of the published runs, so that `--num-gpus`
  of any number works.
"""


@dataclass(frozen=True)
class Row:
    """
    One row of a table.

    Attributes:
        table: the table it belongs to.
        key: unique in its table.
        label: what the paper calls it.
        reported: metric -> number as printed; only what is known.
        config: a file below `configs/`, "grid", or nothing for what cannot be run.
        note: anything to know; if it cannot be run, why.
    """

    table: Table
    key: str
    label: str
    reported: dict[str, str]
    config: str
    note: str

    @property
    def name(self) -> str:
        return f"{self.table.key}/{self.key}"

    @property
    def header(self) -> str:
        """What the config says about the row, in one sentence or two."""
        numbers = ", ".join(f"{metric} {number}" for metric, number in self.reported.items())
        return (
            f'{self.table.paper.name}, {self.table.title}, "{self.label}". '
            f"Reported: {numbers or 'not known'}."
        )

    def comment(self) -> str:
        """The header as lines of YAML, a metric and its number on the same line."""
        text = re.sub(r"(AP\w*|AR\w*) (?=\d)", "\\1\N{NO-BREAK SPACE}", self.header)
        lines = textwrap.wrap(text, 98, break_on_hyphens=False)
        return "\n".join(f"# {line}" for line in lines).replace("\N{NO-BREAK SPACE}", " ")


@dataclass(frozen=True)
class Table:
    """A table of a paper; its rows are those of `docs/papers/<key>.csv`."""

    paper: Paper
    key: str
    title: str
    note: str

    @cached_property
    def _lines(self) -> tuple[list[str], list[dict[str, str]]]:
        with open(TABLES / f"{self.key}.csv", encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)

    @property
    def metrics(self) -> list[str]:
        return [column for column in self._lines[0] if column not in DESCRIPTION]

    @cached_property
    def rows(self) -> list[Row]:
        return [
            Row(
                self,
                line["row"],
                line["label"],
                {metric: line[metric] for metric in self.metrics if line[metric]},
                line["config"],
                line["note"],
            )
            for line in self._lines[1]
        ]


@dataclass(frozen=True)
class Paper:
    """A paper, and what `docs/papers/index.yaml` says about its tables."""

    name: str
    url: str
    note: str
    index: dict[str, dict[str, str]]

    @cached_property
    def tables(self) -> list[Table]:
        return [Table(self, key, **entry) for key, entry in self.index.items()]


def load_papers() -> list[Paper]:
    """All papers, in the order of the page."""
    entries = yaml.safe_load((TABLES / "index.yaml").read_text(encoding="utf-8"))
    return [
        Paper(entry["paper"], entry["url"], entry.get("note", ""), entry["tables"])
        for entry in entries
    ]


def all_rows() -> Iterator[Row]:
    """The rows of all tables, in the order of the page."""
    for paper in load_papers():
        for table in paper.tables:
            yield from table.rows


def find_row(name: str) -> Row:
    """
    The row `<table>/<key>`.

    Raises:
        ConfigError: there is none.
    """
    for row in all_rows():
        if row.name == name:
            return row
    raise ConfigError(
        f"no row {name!r} in the papers' tables: `python -m lt_detectron2.analysis.papers list` "
        "has them all"
    )


def write_config(row: Row, folder: Path) -> Path:
    """
    The config of a row: its file, or one that is written to ``folder`` from the grid.

    Raises:
        ConfigError: the row cannot be run.
    """
    if not row.config:
        raise ConfigError(f"{row.name} cannot be run: {row.note}")
    if row.config != GRID:
        return CONFIGS / row.config
    name, content = expand(row.table.key, row.key)
    path = folder / f"{name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    base = os.path.relpath(CONFIGS / content.pop("_BASE_"), folder)
    text = f"{row.comment()}\n_BASE_: {base}\n{yaml.safe_dump(content, sort_keys=False)}"
    path.write_text(text, encoding="utf-8")
    return path


# ---- the page


def page() -> str:
    """The text of `docs/papers.md`."""
    measured = measurements()
    parts = [INTRODUCTION]
    for paper in load_papers():
        about = f"<{paper.url}> {paper.note}".strip()
        parts.append(f"## {paper.name}\n\n{about}\n")
        parts += [_section(table, measured) for table in paper.tables]
    return "\n".join(parts)


def measurements() -> dict[str, str]:
    """What was measured here, in words, by the name of the row."""
    with open(TABLES / "measured.csv", encoding="utf-8", newline="") as file:
        found: dict[str, list[str]] = {}
        for line in csv.DictReader(file):
            text = f"{line['metric']} {line['value']} (seed {line['seed']}, {line['commit']})"
            found.setdefault(f"{line['table']}/{line['row']}", []).append(text)
    return {name: ", ".join(texts) for name, texts in found.items()}


def _section(table: Table, measured: dict[str, str]) -> str:
    columns = ["row", *(f"reported {m}" for m in table.metrics), "measured here", "config", "note"]
    title = table.title[0].upper() + table.title[1:]
    lines = [f"### {title} (`{table.key}`)", "", table.note, ""]
    lines.append(_line(columns))
    lines.append(_line(["---", *("--:" for _ in table.metrics), "---", "---", "---"]))
    for row in table.rows:
        numbers = [row.reported.get(metric, "") for metric in table.metrics]
        cells = [row.label, *numbers, measured.get(row.name, ""), _config_cell(row), row.note]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _config_cell(row: Row) -> str:
    if row.config == GRID:
        return f"`{row.name}`"
    return f"[{Path(row.config).stem}](../configs/{row.config})" if row.config else "cannot be run"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# ---- the program


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="rows whose name contains a text")
    listing.add_argument("text", nargs="?", default="")
    writing = commands.add_parser("write", help="make the config of a row and print its path")
    writing.add_argument("row", help="<table>/<row>, as `list` prints it")
    writing.add_argument("--folder", type=Path, default=Path("output/grids"))
    commands.add_parser("page", help=f"write {PAGE.relative_to(REPOSITORY)} anew")
    args = parser.parse_args(arguments)
    if args.command == "page":
        PAGE.write_text(page(), encoding="utf-8")
    elif args.command == "write":
        print(write_config(find_row(args.row), args.folder))
    else:
        for row in all_rows():
            if args.text in row.name:
                config = row.config or f"cannot be run: {row.note}"
                numbers = " ".join(f"{m} {n}" for m, n in row.reported.items())
                print(f"{row.name:<42} {numbers:<52} {config.replace(GRID, GRIDS.name)}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
