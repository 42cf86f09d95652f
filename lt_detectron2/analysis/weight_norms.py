"""
How long the classifier's weight vector of every class is.

    python -m lt_detectron2.analysis.weight_norms output/softmax output/eqlv2
    python -m lt_detectron2.analysis.weight_norms model_final.pkl --counts lvis_v1_train

The most frequent class comes first. Norms that fall with frequency show a classifier that prefers
classes for their number, as in EQL v2 (https://arxiv.org/abs/2012.08548, Figure 3) and ROG (Figure
A1). Runs are output folders or checkpoints, of this library or of others; whose columns are not one
a class need the config.yaml of their training beside them. A cascade has a norm for each stage, of
which the mean is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..engine.safe_loading import load_checkpoint_file
from ..errors import CheckpointError, UserError
from ..statistics import ClassStatistics
from .classes import SOURCE_HELP, by_frequency, class_columns, groups_of, read_counts
from .program import add_runs, draw_and_exit, figure_parser, labels_of
from .style import RUN_COLOURS, mark_groups, new_figure, save, tidy

CLASSIFIER = r"(.*\.)?box_predictor\.(\d+\.)?cls_score\.(linear\.)?weight"
"""Keys of the classifiers of Detectron2's box heads and ours."""


@dataclass(frozen=True)
class Norms:
    """(K,) mean norm over stages of the weights of each class, and what to call the run."""

    label: str
    norms: np.ndarray


def read_norms(
    run: str | Path, label: str, statistics: ClassStatistics, pattern: str = CLASSIFIER
) -> Norms:
    """
    Args:
        run: output folder or checkpoint.
        label: what to call it.
        statistics: counts of its training set.
        pattern: regular expression of the keys of classifier weights, (L, D) each.

    Raises:
        CheckpointError: no such file, or no such weights in it.
        UserError: nobody knows which column belongs to which class.
    """
    path = checkpoint_of(run)
    state = read_state(path)
    weights = [
        torch.as_tensor(value).double()
        for key, value in state.items()
        if re.fullmatch(pattern, key) and np.ndim(value) == 2
    ]
    if not weights:
        raise CheckpointError(
            f"{path} has no classifier, expected a matrix with a key like {pattern!r}: name its "
            "own with --key"
        )
    stages = [_class_weights(weight, statistics, path) for weight in weights]
    return Norms(label, _mean_norms(stages))


def norms_of_model(model: nn.Module, label: str) -> Norms | None:
    """Those of a detector as it is now; None if it has no box heads of this package."""
    heads = getattr(getattr(model, "module", model), "roi_heads", None)
    stages = [
        predictor.classification_loss.class_logits(predictor.cls_score.weight.detach().double().T).T
        for _, predictor in getattr(heads, "box_stages", ())
    ]
    return Norms(label, _mean_norms(stages)) if stages else None


def draw(runs: Sequence[Norms], statistics: ClassStatistics, path: str | Path) -> Path:
    """The figure; its CSV holds the norms."""
    order = by_frequency(statistics)
    columns = class_columns(statistics, order)
    columns |= {run.label: run.norms[order].tolist() for run in runs}
    return save(norms_figure(runs, statistics), path, columns)


def norms_figure(runs: Sequence[Norms], statistics: ClassStatistics) -> Figure:
    """Norms by class rank; a line through the means of ranks nearby where there are many."""
    order = by_frequency(statistics)
    figure, axes = new_figure(7.2, 3.2)
    for i, run in enumerate(runs):
        colour = RUN_COLOURS[i % len(RUN_COLOURS)]
        norms = run.norms[order]
        axes.scatter(range(len(norms)), norms, s=8, color=colour, alpha=0.5, linewidths=0)
        axes.plot(running_mean(norms), color=colour, linewidth=1.6, label=run.label)
    groups = groups_of(statistics)
    mark_groups(axes, [groups[c] for c in order])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("class, most frequent first")
    axes.set_ylabel("norm of the classifier's weights")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return figure


def _mean_norms(stages: Sequence[Tensor]) -> np.ndarray:
    """(K,) mean over stages of the norms of weights (K, D)."""
    return torch.stack([weights.norm(dim=1) for weights in stages]).mean(dim=0).cpu().numpy()


def running_mean(values: np.ndarray) -> np.ndarray:
    """(K,) mean of each value and its neighbours, about a tenth of all together."""
    reach = len(values) // 20
    padded = np.concatenate([[0.0], values.cumsum()])
    centre = np.arange(len(values))
    low, high = (centre - reach).clip(min=0), (centre + reach + 1).clip(max=len(values))
    return (padded[high] - padded[low]) / (high - low)


def checkpoint_of(run: str | Path) -> Path:
    """The checkpoint that a run stands for: itself, or the last one of an output folder."""
    path = Path(run) / "model_final.pth" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {str(path)!r}: give one, or an output folder")
    return path


def read_state(path: Path) -> dict[str, Tensor | np.ndarray]:
    """The weights of a checkpoint by key: a .pth file, or a .pkl file of Detectron2's model zoo."""
    state = load_checkpoint_file(str(path))
    return state.get("model", state.get("state_dict", state))


def _class_weights(weight: Tensor, statistics: ClassStatistics, path: Path) -> Tensor:
    """(K, D) weights of the classes among those (L, D) of all logits."""
    num_classes = statistics.num_classes
    config = path.parent / "config.yaml"
    if config.is_file():
        return _loss_of(config, statistics).class_logits(weight.T).T
    if len(weight) not in (num_classes, num_classes + 1, num_classes + 2):
        raise UserError(
            f"the classifier of {path} has {len(weight)} logits for {num_classes} classes, and no "
            "config.yaml beside it says which are whose: put that of its training there, or give "
            "the counts of its training set with --counts"
        )
    return weight[:num_classes]


def _loss_of(config: Path, statistics: ClassStatistics):
    from ..engine.setup import load_config
    from ..modeling.classification_loss import build_classification_loss

    cfg = load_config(str(config))
    configured = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if configured != statistics.num_classes:
        raise UserError(
            f"{config} is of {configured} classes, the counts are of {statistics.num_classes}: "
            "give those of its training set with --counts"
        )
    return build_classification_loss(cfg, statistics)


def main() -> None:
    parser = figure_parser("weight_norms", __doc__)
    add_runs(parser)
    parser.add_argument("--counts", help=f"{SOURCE_HELP}; by default the first run's")
    parser.add_argument("--key", default=CLASSIFIER, help="regular expression of classifier keys")
    arguments = parser.parse_args()

    def work() -> Path:
        counts = arguments.counts or str(checkpoint_of(arguments.runs[0]))
        if counts.endswith(".pkl"):
            raise UserError(f"{counts} holds no class counts: give --counts, {SOURCE_HELP}")
        statistics = read_counts(counts)
        runs = zip(arguments.runs, labels_of(arguments))
        norms = [read_norms(*run, statistics, arguments.key) for run in runs]
        return draw(norms, statistics, arguments.output)

    draw_and_exit(work)


if __name__ == "__main__":
    main()
