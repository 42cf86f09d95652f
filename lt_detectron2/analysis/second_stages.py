"""
Compare what can be made of one softmax detector on SynthLT: second stages and calibrations.

    python -m lt_detectron2.analysis.second_stages --seeds 0 1 --page docs/results_second_stages.md
    python -m lt_detectron2.analysis.second_stages --profile smoke --methods control crt norcal

Most methods are a config ``configs/SynthLT/second_stage/<method>_demo.yaml``. For each seed a
softmax detector is trained once (or found in --output, where the study puts it, too), and every
method starts from it. What is finished is not repeated.
"""

from __future__ import annotations

import argparse
import shlex
import statistics as stats
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.synthetic import PROFILES, datasets_root, generate
from .runs import REPOSITORY, Run, RunFailed, execute, exit_status, explain_failure
from .study import (
    METRICS,
    mean_and_spread,
    prepare_folder,
    provenance_of,
    study_parser,
)

CONFIGS = Path("configs/SynthLT")
SMOKE_ITERATIONS = 100
"""Length of a second stage on the smallest set; enough to see that it runs."""


@dataclass(frozen=True)
class Method:
    """
    A row of the table.

    Attributes:
        label: what the table calls it.
        trains: what it trains, in words; empty for a calibration, which trains nothing.
        after: method whose result it starts from, if not the softmax detector.
        search: calibration whose strength is chosen first, on images of the training set.
        recipe: method whose config it has, if it has none of its own.
    """

    label: str
    trains: str = ""
    after: str = ""
    search: str = ""
    recipe: str = ""


METHODS = {
    "control": Method("softmax, continued (the control)", "classifier"),
    "bags_train_classifier": Method("BAGS, train classifier", "classifier"),
    "bags_train_head": Method("BAGS, train head", "box head"),
    "bags_tune_head": Method("BAGS, then tune head", "box head", "bags_train_classifier"),
    "bags_tune_all": Method("BAGS, then tune all", "all but stem, res2", "bags_train_classifier"),
    "crt": Method("cRT", "classifier"),
    "lws": Method("LWS", "scales"),
    "lws_scaled_bias": Method("LWS, biases scaled too", "scales"),
    "reweight_classifier": Method("re-weighting (7)", "classifier"),
    "reweight_all": Method("re-weighting (6)", "all but stem, res2"),
    "focal_classifier": Method("focal loss, K columns, classifier", "classifier"),
    "focal_all": Method("focal loss, K columns", "all but stem, res2"),
    "simcal": Method("SimCal", "second head"),
    "loce": Method("LOCE", "classifier, box regression, RPN"),
    "tde": Method("De-confound-TDE", "classifier"),
    "ncm_fc": Method("nearest class mean, box head (10)"),
    "ncm_conv": Method("nearest class mean, RoIAlign (11)"),
    "tau_norm": Method("tau-norm (12)"),
    "tau_norm_select": Method("tau-norm, selected (13)"),
    "tau_norm_searched": Method(
        "tau-norm (13), tau searched", search="TauNorm", recipe="tau_norm_select"
    ),
    "norcal": Method("NorCal"),
    "norcal_searched": Method("NorCal, gamma searched", search="NorCal", recipe="norcal"),
}
"""The rows, in the order of the table."""


def first_stage(profile: str, seed: int, output: Path, overrides: Sequence[str] = ()) -> Run:
    """The softmax detector of a seed."""
    return Run(
        f"softmax, seed {seed}",
        str(CONFIGS / f"softmax_{profile}.yaml"),
        output / f"softmax_seed{seed}",
        ["SEED", str(seed), *overrides],
    )


def second_stage(
    method: str, profile: str, seed: int, output: Path, overrides: Sequence[str] = ()
) -> Run:
    """A method on the detector of a seed; what it starts from must be there when it runs."""
    start = METHODS[method].after or "softmax"
    weights = output / f"{start}_seed{seed}" / "model_final.pth"
    folder = output / f"{method}_seed{seed}"
    config = recipe_file(method)
    if METHODS[method].search:
        config = str(folder / "calibration" / f"{METHODS[method].search}.yaml")
    return Run(
        f"{METHODS[method].label}, seed {seed}",
        config,
        folder,
        ["SEED", str(seed), "MODEL.WEIGHTS", str(weights)]
        + [*profile_overrides(profile), *overrides],
        eval_only=not METHODS[method].trains,
    )


def recipe_file(method: str) -> str:
    """The config that a method has or starts from, relative to the repository."""
    return str(CONFIGS / "second_stage" / f"{METHODS[method].recipe or method}_demo.yaml")


def profile_overrides(profile: str) -> list[str]:
    """What turns a config of the demo into one of another profile, as keys and values."""
    if profile == "demo":
        return []
    from detectron2.config import CfgNode

    base = REPOSITORY / CONFIGS / f"Base-{profile}.yaml"
    content = CfgNode.load_cfg(base.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in ("_BASE_", "SOLVER")}
    return [*_flatten(kept), "SOLVER.MAX_ITER", str(SMOKE_ITERATIONS)]


def run_all(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    overrides: Sequence[str] = (),
) -> None:
    """Train and evaluate what is not finished: detectors, then methods by what they need."""
    print(f"1. Images: SynthLT {profile}, below {datasets_root()}")
    generate(PROFILES[profile], datasets_root(), seed=None)
    print("2. Softmax detectors")
    _execute([first_stage(profile, seed, output, overrides) for seed in seeds])
    print("3. Methods, each from a softmax detector, then those that start from another method")
    needed = {METHODS[method].after for method in methods} - {""}
    for wave in (
        [m for m in METHODS if m in {*methods, *needed} and not METHODS[m].after],
        [m for m in METHODS if m in methods and METHODS[m].after],
    ):
        runs = {
            (seed, m): second_stage(m, profile, seed, output, overrides)
            for seed in seeds
            for m in wave
        }
        for (_, method), run in runs.items():
            if METHODS[method].search and not run.is_done:
                print(f"   {run.name}: searching")
                search_strength(method, run)
        _execute(list(runs.values()))


def search_strength(method: str, run: Run) -> None:
    """
    Write the config of a searched calibration, with the best strength on training images.

    Raises:
        RunFailed: the search ended with an error.
    """
    prepare_folder(run)
    start = time.monotonic()
    with (run.folder / "console.txt").open("ab") as console:
        status = subprocess.run(
            [sys.executable, *_search_command(method, run)],
            cwd=REPOSITORY,
            stdout=console,
            stderr=subprocess.STDOUT,
        ).returncode
    run.add_seconds(time.monotonic() - start)
    if status:
        raise RunFailed(explain_failure(run))


def _search_command(method: str, run: Run) -> list[str]:
    command = ["tools/calibrate.py", "--config-file", recipe_file(method)]
    command += ["--method", METHODS[method].search]
    return [*command, "OUTPUT_DIR", str(run.folder), *run.overrides]


def finished_runs(profile: str, output: Path) -> dict[str, list[Run]]:
    """Every finished run below a folder by label, first stages first."""
    runs: dict[str, list[Run]] = {"softmax": []}
    for folder in sorted(output.glob("*_seed*")):
        method, seed = folder.name.rsplit("_seed", 1)
        if method == "softmax":
            runs[method].append(first_stage(profile, int(seed), output))
        elif method in METHODS:
            runs.setdefault(method, []).append(second_stage(method, profile, int(seed), output))
    order = ["softmax", *(method for method in METHODS if method in runs)]
    done = {method: [run for run in runs[method] if run.is_done] for method in order}
    return {method: repeated for method, repeated in done.items() if repeated}


def results_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """Markdown: a row a method, mean over seeds and, for several, the standard deviation."""
    lines = [
        "| method | trains | seeds | " + " | ".join(METRICS) + " | s / iteration | seconds |",
        "|---|---|--:|" + "--:|" * (len(METRICS) + 2),
    ]
    for method, repeated in runs.items():
        results = [run.results()["bbox"] for run in repeated]
        cells = [mean_and_spread([result[metric] for result in results]) for metric in METRICS]
        cells.append(_positive(stats.mean(run.seconds_per_iteration() for run in repeated), 3))
        cells.append(_positive(stats.mean(run.seconds() for run in repeated), 0))
        row = [_label(method), _trains(method), str(len(repeated)), *cells]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def write_page(profile: str, runs: Mapping[str, Sequence[Run]], page: Path) -> Path:
    """The page of results: the table, every seed by itself, the commands, where it was measured."""
    seeds = ["| method | seed | " + " | ".join(METRICS) + " | seconds | commit |"]
    seeds.append("|---|--:|" + "--:|" * (len(METRICS) + 1) + "---|")
    machines, commands = set(), []
    for method, repeated in runs.items():
        for run in repeated:
            source = provenance_of(run)
            machines.add(f"{source['machine']}, torch {source['torch']}")
            numbers = [f"{run.results()['bbox'][metric]:.1f}" for metric in METRICS]
            seed = run.folder.name.rsplit("seed", 1)[1]
            cells = [_label(method), seed, *numbers, _positive(run.seconds(), 0), source["commit"]]
            seeds.append("| " + " | ".join(cells) + " |")
        commands += _commands(method, repeated[0])
    page.write_text(
        _PAGE.format(
            profile=profile,
            page=page,
            table=results_table(runs),
            seeds="\n".join(seeds),
            machines="; ".join(sorted(machines)),
            commands="\n".join(commands),
        ),
        encoding="utf-8",
    )
    return page


_PAGE = """# Second stages and calibrations on SynthLT {profile}

Measured, not taken from a paper. Written by the command at the end; do not edit.

Each seed has one softmax detector, and every other row starts from it: it trains a part of it
again, or changes scores at test time and trains nothing. Box AP in percent on the validation set by
the LVIS metric: over all classes, and over the rare (up to 10 training images), common (up to 100)
and frequent ones. Mean over seeds ± standard deviation. Seconds are wall-clock, of training and
evaluation together, with as many runs at a time as there are cores or GPUs; a row that starts from
another one comes on top of that. They depend on what else the machine was doing;
`docs/second_stages.md` has iterations timed side by side.

{table}

How to read it: compare a row with the control, which had as many iterations with the loss of the
first stage (BAGS' "then tune" rows have twice as many), and not with the first stage. Differences
of 2 AP between two rows of two seeds are noise, and APr rests on few classes. Strengths of
calibrations are those of the papers, unless a row says that it was searched, on images of the
training set.
Numbers in parentheses are those of the rows of BAGS' main results ([papers](papers.md)). Focal loss
has no column for the background here, so that its classifier starts anew, and is divided by the
foreground regions: it is not the loss that rows (8) and (9) there mean.

## Every seed

{seeds}

Machine: {machines}.

## Commands

All rows:

```
python -m lt_detectron2.analysis.second_stages --profile {profile} --page {page}
```

Single ones, of the first seed:

```
{commands}
```
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__, METHODS)
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="config keys and values")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output).resolve()

    def work() -> None:
        run_all(arguments.profile, arguments.methods, arguments.seeds, output, arguments.overrides)
        runs = finished_runs(arguments.profile, output)
        print(results_table(runs))
        if arguments.page:
            print(write_page(arguments.profile, runs, Path(arguments.page)))

    return exit_status(work)


def _execute(runs: Sequence[Run]) -> None:
    from ..engine.setup import load_config

    if not runs:
        return
    for run in runs:
        prepare_folder(run)
    cfg = load_config(str(REPOSITORY / runs[0].config), runs[0].overrides)
    execute(runs, cfg.SOLVER.MAX_ITER)


def _flatten(node: Mapping, prefix: str = "") -> Iterable[str]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield from (f"{prefix}{key}", str(value))


def _positive(seconds: float, decimals: int) -> str:
    """A time, or a dash where none was measured."""
    return f"{seconds:.{decimals}f}" if seconds > 0 else "–"


def _label(method: str) -> str:
    return METHODS[method].label if method in METHODS else method


def _trains(method: str) -> str:
    return METHODS[method].trains or "nothing" if method in METHODS else "everything"


def _commands(method: str, run: Run) -> list[str]:
    overrides = ["OUTPUT_DIR", str(run.folder), *run.overrides]
    train = ["train_net.py", *(["--eval-only"] if run.eval_only else [])]
    train += ["--config-file", run.config, *overrides]
    is_searched = method in METHODS and METHODS[method].search
    commands = [_search_command(method, run), train] if is_searched else [train]
    parent = f"{run.folder.parent}/"
    return [shlex.join(["python", *command]).replace(parent, "") for command in commands]


if __name__ == "__main__":
    sys.exit(main())
