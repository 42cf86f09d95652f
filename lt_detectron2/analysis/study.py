"""
Compare methods on SynthLT over several seeds, and write the page with the results.

    python -m lt_detectron2.analysis.study --seeds 0 1 --methods softmax eqlv2 rog_softmax
    python -m lt_detectron2.analysis.study --seeds 0 1 --page docs/results_synthlt.md

A method is a config ``configs/SynthLT/<method>_<profile>.yaml``, and ``<method>_rfs`` the same with
repeat-factor sampling, unless it has a config of its own. Runs that are finished are not repeated,
and the table takes in every finished seed of a method, so that a study can grow.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..data.synthetic import PROFILES, datasets_root, generate
from .provenance import provenance
from .runs import REPOSITORY, Run, execute, exit_status

METRICS = ("AP", "APr", "APc", "APf")
METHODS = {
    "softmax": "softmax",
    "softmax_cosine": "softmax, normalised classifier",
    "sigmoid": "sigmoid",
    "cb": "class-balanced softmax",
    "balanced_softmax": "balanced softmax",
    "balanced_sigmoid": "balanced sigmoid",
    "ldam": "LDAM",
    "focal": "focal",
    "efl": "EFL",
    "federated": "federated",
    "eql": "EQL",
    "seql": "softmax EQL",
    "eqlv2": "EQL v2",
    "seqlv2": "softmax EQL v2",
    "drop": "DropLoss",
    "acsl": "ACSL",
    "seesaw": "Seesaw, linear classifier",
    "seesaw_cosine": "Seesaw",
    "bags": "BAGS, in one stage",
    "ecm": "ECM",
    "gumbel": "GOL",
    "fbs_aegl": "FBS-AEGL",
    "rog_softmax": "softmax + GAP (ROG)",
    "rog_softmax_cosine": "softmax + GAP (ROG), normalised classifier",
    "rog_eqlv2": "EQL v2 + GAP (ROG)",
    "harmonic_softmax": "softmax + Harmonic",
    "harmonic_hiou_softmax": "softmax + Harmonic + HIoU",
}
"""Methods with a config for the demo profile, in the order of the tables."""

REPEATED = "_rfs"
"""Suffix of a method that is trained with repeat-factor sampling."""

LABELS = {
    method + suffix: label + note
    for method, label in METHODS.items()
    for suffix, note in (("", ""), (REPEATED, " + RFS"))
}
"""What to call each method, with random and with repeat-factor sampling."""

PROVENANCE_FILE = "measured_at.json"


def make_runs(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    overrides: Sequence[str] = (),
) -> dict[str, list[Run]]:
    """A run for each method and seed; its folder is ``<method>_seed<seed>``."""
    runs: dict[str, list[Run]] = {}
    for method in methods:
        config, sampling = _recipe(method, profile)
        runs[method] = [
            Run(
                f"{LABELS.get(method, method)}, seed {seed}",
                config,
                output / f"{method}_seed{seed}",
                ["SEED", str(seed), *sampling, *overrides],
            )
            for seed in seeds
        ]
    return runs


def _recipe(method: str, profile: str) -> tuple[str, list[str]]:
    """Config file of a method and what to override in it."""
    config = f"configs/SynthLT/{method}_{profile}.yaml"
    if not method.endswith(REPEATED) or (REPOSITORY / config).is_file():
        return config, []
    sampling = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]
    sampling += ["LONG_TAIL.REPEAT_THRESHOLD", "auto"]
    return f"configs/SynthLT/{method.removesuffix(REPEATED)}_{profile}.yaml", sampling


def train_all(profile: str, runs: Mapping[str, Sequence[Run]]) -> None:
    """Generate the images and train what is not finished yet, seed by seed."""
    from ..engine.setup import load_config

    order = [run for same_seed in zip(*runs.values()) for run in same_seed]
    cfg = load_config(str(REPOSITORY / order[0].config), order[0].overrides)
    print(f"1. Images: SynthLT {profile}, below {datasets_root()}")
    generate(PROFILES[profile], datasets_root(), seed=None)
    done = [run.name for run in order if run.is_done]
    if done:
        print(f"   Already trained: {', '.join(done)} (--fresh trains anew)")
    print(f"2. Training: {cfg.SOLVER.MAX_ITER} iterations each, then evaluation on the val set")
    for run in order:
        prepare_folder(run)
    execute(order, cfg.SOLVER.MAX_ITER)


def results_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """Markdown: a row a method, mean over seeds and, for several, the standard deviation."""
    header, rows = results_rows(runs)
    lines = [header, ["---", "---", *["--:"] * len(METRICS)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def results_rows(runs: Mapping[str, Sequence[Run]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of :func:`results_table`."""
    rows = []
    for method, repeated in runs.items():
        results = [run.results()["bbox"] for run in repeated]
        cells = [mean_and_spread([result[metric] for result in results]) for metric in METRICS]
        rows.append([LABELS.get(method, method), str(len(repeated)), *cells])
    return ["method", "seeds", *METRICS], rows


def finished_runs(profile: str, output: Path) -> dict[str, list[Run]]:
    """Every finished run below a folder, by method, in the order of LABELS."""
    seeds = {
        method: sorted(int(f.name.rsplit("seed", 1)[1]) for f in output.glob(f"{method}_seed*"))
        for method in LABELS
    }
    every = {
        method: make_runs(profile, [method], of_method, output)[method]
        for method, of_method in seeds.items()
    }
    done = {method: [run for run in runs if run.is_done] for method, runs in every.items()}
    return {method: runs for method, runs in done.items() if runs}


def write_page(profile: str, runs: Mapping[str, Sequence[Run]], page: Path) -> Path:
    """The page of results: the table, each seed by itself, and where they come from."""
    seeds = ["| method | seed | " + " | ".join(METRICS) + " | commit |"]
    seeds.append("|---|--:|" + "--:|" * len(METRICS) + "---|")
    machines = set()
    for method, repeated in runs.items():
        for run in repeated:
            source = provenance_of(run)
            machines.add(f"{source['machine']}, torch {source['torch']}")
            numbers = [f"{run.results()['bbox'][metric]:.1f}" for metric in METRICS]
            seed = run.folder.name.rsplit("seed", 1)[1]
            row = [LABELS.get(method, method), seed, *numbers, source["commit"]]
            seeds.append("| " + " | ".join(row) + " |")
    page.write_text(
        _PAGE.format(
            profile=profile,
            table=results_table(runs),
            seeds="\n".join(seeds),
            machines="; ".join(sorted(machines)),
            methods=" ".join(runs),
        ),
        encoding="utf-8",
    )
    return page


_PAGE = """# Results on SynthLT {profile}

Measured, not taken from a paper. Written by the command at the end; do not edit.

Box AP in percent on the validation set by the LVIS metric: over all classes, and over the rare (up
to 10 training images), common (up to 100) and frequent ones. Mean over seeds ± standard deviation.
All rows share backbone, data and schedule: 600 iterations of SGD from scratch, 3 epochs. RFS is
repeat-factor sampling with the threshold of 100 images. LDAM and ECM have the normalised
classifier, as their papers do. GAP's gamma and weight are 1, but for softmax + GAP + RFS with a
linear classifier: 0.5 and 0.1, as published.

{table}

How to read it: the sets are small, so differences of 2 AP between two rows of two seeds are noise,
and APr rests on 17 classes. The schedule is short; the order of methods at convergence, and on
photographs, may be another. Where it is not what the papers say, [choosing.md](choosing.md) says
so; [papers.md](papers.md) has what they report. An iteration takes as long with one loss as with
another, within a few percent: [performance.md](performance.md) measures them side by side. Losses
that draw (DropLoss, GOL, FBS-AEGL since commit 26a469e, softmax EQL since f51977b) draw for fewer
regions now: with the same probabilities, but other numbers for the same seed. A + after a commit
says that files differed from it. `EquilibriumLoss` is LOCE's, of a
second stage, and on [the page of those](results_second_stages.md).

## Every seed

{seeds}

Machine: {machines}.

```
python -m lt_detectron2.analysis.study --methods {methods} --page docs/results_synthlt.md
```

Where there is a third seed, with `--seeds 0 1 2`.
"""


def study_parser(description: str, methods: Iterable[str]) -> argparse.ArgumentParser:
    """Command line of a study that compares these methods over seeds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="demo", choices=["smoke", "demo"])
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=list(methods))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", default="output/study", help="folder of the runs")
    parser.add_argument("--page", help="write the results there, of all that is finished")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = study_parser(__doc__, LABELS).parse_args(argv)
    output = Path(arguments.output).resolve()

    def work() -> None:
        wanted = make_runs(arguments.profile, arguments.methods, arguments.seeds, output)
        train_all(arguments.profile, wanted)
        runs = finished_runs(arguments.profile, output)
        print(results_table(runs))
        if arguments.page:
            print(write_page(arguments.profile, runs, Path(arguments.page)))

    return exit_status(work)


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean with one decimal, and for several values their standard deviation."""
    text = f"{stats.mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {stats.stdev(values):.1f}"


def prepare_folder(run: Run) -> None:
    """Make a run's folder, and note where it is measured if it starts from nothing."""
    if run.is_done or (run.folder / "last_checkpoint").is_file():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / PROVENANCE_FILE).write_text(json.dumps(provenance(), indent=2))


def provenance_of(run: Run) -> dict[str, str]:
    """Where a run was measured, see :func:`provenance`."""
    path = run.folder / PROVENANCE_FILE
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"commit": "unknown", "machine": "unknown machine", "torch": "unknown"}


if __name__ == "__main__":
    sys.exit(main())
