"""
Tables and figures of docs/performance.md from the results in CSV files.

    python -m benchmarks.report

Of a case that was measured several times the last measurement counts that has at least half as many
runs as the longest: the short form of a benchmark does not replace the full one. In the page, what
lies between `<!-- table NAME -->` and `<!-- end -->` is replaced; figures go to docs/images/.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.harness import REPEATS, REPOSITORY, RESULTS

PAGE = REPOSITORY / "docs" / "performance.md"
IMAGES = REPOSITORY / "docs" / "images"
EVALUATION = RESULTS / "evaluation.csv"
NOT_MEASURED = "not measured"
GPU = re.compile(r"\(.*\), \d+ cores$")
"""A machine with a GPU is written as the GPU, and its processor in parentheses."""

Row = Mapping[str, str]
Table = list[Sequence[str]]


def main() -> int:
    """Write the page and the figures."""
    page = PAGE.read_text(encoding="utf-8")
    tables = {
        "losses": versus("losses", "cross_entropy", of="4096x1203"),
        "losses_sizes": by_size(),
        "losses_gpu": floors(),
        "ranking": versus("ranking", "cross_entropy"),
        "inference": speedups("inference", "detectron2"),
        "masks": speedups("masks", "detectron2"),
        "training_step": versus("training_step", "SoftmaxCrossEntropyLoss"),
        "data": data_table(),
        "evaluation": evaluation_table(),
    }
    for name, table in tables.items():
        page = replace_table(page, name, markdown(table))
    PAGE.write_text(page, encoding="utf-8")
    for name, draw in FIGURES.items():
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
        draw(axes)
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(IMAGES / f"performance_{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
    return 0


# ---- results


def counted(path: Path, keys: Sequence[str]) -> list[Row]:
    """
    Rows of the measurements that count, in the order in which their keys first appear.

    A measurement is a row without speedup, the candidate's, and the rows with one that follow it.
    """
    if not path.is_file():
        return []
    measurements: list[list[Row]] = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("speedup_median"):
                measurements[-1].append(row)
            else:
                measurements.append([row])
    by_case: dict[tuple[str, ...], list[list[Row]]] = {}
    for rows in measurements:
        by_case.setdefault(tuple(rows[0][key] for key in keys), []).append(rows)
    kept = []
    for of_case in by_case.values():
        most = max(int(rows[0]["runs"]) for rows in of_case)
        # Not only of equally many: a candidate that has become slow has fewer (SLOW_SECONDS).
        kept += [rows for rows in of_case if 2 * int(rows[0]["runs"]) >= most][-1]
    return kept


def contests(benchmark: str, baseline: str, on_gpu: bool = False) -> dict[str, dict[str, Row]]:
    """By case the rows of the candidate, as "", and of all whom it was compared with."""
    cases: dict[str, dict[str, Row]] = {}
    for row in counted(RESULTS / f"{benchmark}.csv", ("case", "machine")):
        if bool(GPU.search(row["machine"])) == on_gpu:
            name = row["contestant"] if row["speedup_median"] else ""
            cases.setdefault(row["case"], {})[name] = row
    return {case: rows for case, rows in cases.items() if "" in rows and baseline in rows}


def sizes(row: Row) -> dict[str, str]:
    """What the case was called with."""
    return dict(part.split("=", 1) for part in row["sizes"].split(" ") if "=" in part)


def ratio(row: Row, quartile: str = "median") -> float:
    """Time of the candidate over that of the baseline whose row this is."""
    return 1 / float(row[f"speedup_{quartile}"])


# ---- tables


def versus(benchmark: str, baseline: str, of: str = "") -> Table:
    """Ratios to a baseline that is to be as cheap, of the cases whose name contains ``of``."""
    table: Table = [("case", "ms", f"{baseline}, ms", "ratio", "quartiles", "extra", "on a GPU")]
    on_gpu = contests(benchmark, baseline, on_gpu=True)
    for case, rows in sorted(contests(benchmark, baseline).items()):
        if of not in case:
            continue
        candidate, other = rows[""], rows[baseline]
        table.append(
            (
                *(case, candidate["ms_median"], other["ms_median"], f"{ratio(other):.2f}"),
                f"{ratio(other, 'q3'):.2f} to {ratio(other, 'q1'):.2f}",
                candidate["extra_tensors"],
                f"{ratio(on_gpu[case][baseline]):.2f}" if case in on_gpu else NOT_MEASURED,
            )
        )
    return table


def by_size() -> Table:
    """Ratios of all losses to the cross entropy at each size, and its milliseconds."""
    ratios: dict[str, dict[tuple[int, int], str]] = {}
    seconds: dict[tuple[int, int], list[float]] = {}
    for rows in contests("losses", "cross_entropy").values():
        of, other = sizes(rows[""]), rows["cross_entropy"]
        if of["compiled"] == "True":
            continue
        size = (int(of["classes"]), int(of["regions"]))
        ratios.setdefault(of["name"], {})[size] = f"{ratio(other):.2f}"
        seconds.setdefault(size, []).append(float(other["ms_median"]))
    ordered = sorted(seconds)
    table: Table = [("loss", *(f"{regions:,} x {classes:,}" for classes, regions in ordered))]
    table.append(("cross entropy, ms", *(f"{median(seconds[size]):.2g}" for size in ordered)))
    for name in sorted(ratios):
        table.append((name, *(ratios[name].get(size, NOT_MEASURED) for size in ordered)))
    return table


def floors() -> Table:
    """Losses on a GPU, as replayed graphs, over the copy that is the least they could take."""
    table: Table = [("case", "us", "copy, us", "copy, GB/s", "times the floor", "of torch.compile")]
    for case, rows in contests("losses", "copy", on_gpu=True).items():
        of = sizes(rows[""])
        if "captured" not in of:
            continue
        times = [1e3 * float(rows[name]["ms_median"]) / REPEATS for name in ("", "copy")]
        copied = 2 * 4 * int(of["regions"]) * int(of["classes"])  # bytes read and written
        compiled = f"{ratio(rows['compiled']):.2f}" if "compiled" in rows else NOT_MEASURED
        table.append(
            (
                *(case, *(f"{time:.1f}" for time in times), f"{copied / times[1] / 1e3:.0f}"),
                *(f"{ratio(rows['copy']):.2f}", compiled),
            )
        )
    return table


def speedups(benchmark: str, baseline: str) -> Table:
    """How many times faster than a baseline that does the same."""
    table: Table = [("stage", "ms", f"{baseline}, ms", "times faster", "quartiles", "on a GPU")]
    on_gpu = contests(benchmark, baseline, on_gpu=True)
    for case, rows in contests(benchmark, baseline).items():
        other = rows[baseline]
        table.append(
            (
                *(case, rows[""]["ms_median"], other["ms_median"], other["speedup_median"]),
                f"{other['speedup_q1']} to {other['speedup_q3']}",
                on_gpu[case][baseline]["speedup_median"] if case in on_gpu else NOT_MEASURED,
            )
        )
    return table


def data_rows() -> list[Row]:
    """Of the largest size that was measured."""
    rows = counted(RESULTS / "data.csv", ("contestant", "processes", "share"))
    largest = max((float(row["share"]) for row in rows), default=0)
    return [row for row in rows if float(row["share"]) == largest]


def data_table() -> Table:
    table: Table = [
        ("start", "processes", "annotations", "seconds", "peak, GiB", "at the first batch, GiB")
    ]
    for row in data_rows():
        memory = (f"{float(row[key]) / 1024:.2f}" for key in ("peak_pss_mib", "pss_mib"))
        name, count = row["contestant"], f"{int(row['annotations']):,}"
        table.append((name, row["processes"], count, row["seconds"], *memory))
    return table


def evaluations() -> list[tuple[str, Row]]:
    """Rows by size, with the names of what was measured."""
    rows = counted(EVALUATION, ("contestant", "share", "numba"))
    return [
        (row["contestant"] + (", compiled" if row["numba"] else ""), row)
        for row in sorted(rows, key=lambda row: float(row["share"]))
    ]


def evaluation_table() -> Table:
    table: Table = [("evaluation", "images", "seconds", "peak, MiB")]
    for name, row in evaluations():
        table.append((name, f"{int(row['images']):,}", row["seconds"], row["peak_mib"]))
    return table


def markdown(table: Table) -> str:
    """A table, or a word where nothing was measured."""
    if len(table) == 1:
        return f"{NOT_MEASURED.capitalize()}."
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (table[0], rule, *table[1:]))


def replace_table(page: str, name: str, table: str) -> str:
    """
    The page with a table put between its marks.

    Raises:
        ValueError: the page has no such marks.
    """
    pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
    page, count = re.subn(pattern, rf"\g<1>{table}\n\g<2>", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE.name} needs one place for table {name}, found {count}")
    return page


# ---- figures


def draw_losses(axes: Sequence[plt.Axes]) -> None:
    """Ratio to cross entropy against regions and against classes."""
    points = [
        (sizes(rows[""]), rows[""]["contestant"], ratio(rows["cross_entropy"]))
        for rows in contests("losses", "cross_entropy").values()
    ]
    for axis, size in zip(axes, ("regions", "classes")):
        others = {"regions": "classes", "classes": "regions"}[size]
        known = [p for p in points if size in p[0] and others in p[0]]
        fixed = _most_common(p[0][others] for p in known)
        for number, name in enumerate(sorted({p[1] for p in known})):
            own = sorted(
                (int(s[size]), value) for s, n, value in known if n == name and s[others] == fixed
            )
            style = (".-", "x--", "+:")[number // 10]  # there are ten colours
            axis.plot(*zip(*own), style, linewidth=1, label=name) if own else None
        axis.set_xlabel(f"{size}, with {fixed} {others}" if fixed else f"{size}: {NOT_MEASURED}")
        axis.set_ylabel("times a cross entropy")
        axis.set_ylim(bottom=0)
    if points:
        axes[1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))


def draw_positives(axes: Sequence[plt.Axes]) -> None:
    """GAP loss against the number of positives."""
    for kind in ("initial", "trained"):
        rows = [
            (int(sizes(r[""])["positives"]), r)
            for r in contests("ranking", "cross_entropy").values()
            if sizes(r[""])["logits"] == kind
        ]
        for axis, name in zip(axes, ("cross_entropy", "loop")):
            points = [
                (p, ratio(r[name]) if name == "cross_entropy" else 1 / ratio(r[name]))
                for p, r in sorted(rows, key=lambda pair: pair[0])
            ]
            axis.plot(*zip(*points), "o-", label=f"{kind} logits") if points else None
            axis.set(xscale="log", xlabel="positives")
    axes[0].set(ylabel="times a cross entropy", ylim=(0, None))
    axes[1].set(ylabel="times faster than the loop", yscale="log")
    axes[0].legend()


def draw_processes(axes: Sequence[plt.Axes]) -> None:
    """Start-up time and memory against the number of processes."""
    rows = data_rows()
    scale = {"seconds": ("seconds", 1), "pss_mib": ("memory at the first batch, GiB", 1024)}
    for axis, (key, (label, unit)) in zip(axes, scale.items()):
        for name in dict.fromkeys(row["contestant"] for row in rows):
            points = [
                (int(r["processes"]), float(r[key]) / unit) for r in rows if r["contestant"] == name
            ]
            axis.plot(*zip(*sorted(points)), "o-", label=name)
        axis.set(xlabel="processes", ylabel=label, ylim=(0, None))
        axis.set_xticks(sorted({int(row["processes"]) for row in rows}))
    if rows:
        axes[0].legend()


def draw_stages(axes: Sequence[plt.Axes]) -> None:
    """Stages of inference, and iterations with each loss."""
    stages = contests("inference", "detectron2")
    for offset, name, label in ((-0.2, "", "lt_detectron2"), (0.2, "detectron2", "Detectron2")):
        times = [float(rows[name]["ms_median"]) for rows in stages.values()]
        axes[0].barh([i + offset for i in range(len(times))], times, 0.4, label=label)
    axes[0].set_yticks(range(len(stages)), list(stages), fontsize=7)
    axes[0].set(xscale="log", xlabel="ms an image")
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7)
    steps = contests("training_step", "SoftmaxCrossEntropyLoss")
    ratios = [ratio(rows["SoftmaxCrossEntropyLoss"]) for rows in steps.values()]
    axes[1].plot(ratios, range(len(ratios)), "o", markersize=4)
    axes[1].axvline(1, color="gray", linewidth=0.5)
    labels = [case.partition(",")[0] for case in steps]
    axes[1].set_yticks(range(len(steps)), labels, fontsize=5)
    axes[1].set_xlabel("iteration over one with softmax")
    axes[1].invert_yaxis()


def draw_growth(axes: Sequence[plt.Axes]) -> None:
    """Seconds and memory of an evaluation against its images."""
    rows = evaluations()
    for axis, key, label in zip(axes, ("seconds", "peak_mib"), ("seconds", "peak memory, MiB")):
        for name in dict.fromkeys(name for name, _ in rows):
            own = [row for other, row in rows if other == name]
            axis.plot(
                [int(r["images"]) for r in own], [float(r[key]) for r in own], ".-", label=name
            )
        axis.set(xscale="log", yscale="log", xlabel="images", ylabel=label)
    axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _most_common(values: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return max(counts, key=lambda value: (counts[value], int(value)), default="")


FIGURES = {
    "losses": draw_losses,
    "positives": draw_positives,
    "processes": draw_processes,
    "stages": draw_stages,
    "growth": draw_growth,
}

if __name__ == "__main__":
    sys.exit(main())
