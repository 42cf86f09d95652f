"""
How many wrong scores stand above the right ones of every class: what GAP loss lowers.

    python -m lt_detectron2.analysis.score_ranks output/softmax output/rog_softmax

Both runs score the regions that their RPNs propose for images of the test set. Of a region of class
m, the right score is that of m; wrong are all scores of other classes, and all of background
regions. The error of a right score is the share of wrong ones in what stands above, as in GAP loss
(ROG, https://doi.org/10.1109/ICCV51070.2023.01740), with hard comparisons of final scores:

    e_i = F_i / (F_i + a_i),   F_i: wrong scores above,   a_i: right ones of the class above, + 1/2

The scores of an image are compared with each other, those of several with --pool; the more wrong
ones there are, the closer are all errors to 1. Drawn is the mean of each class under the first run
(grey) and the second (coloured). Lower is better.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..errors import UserError
from ..ops import ranking_errors
from ..progress import track
from ..statistics import ClassStatistics
from .ap_by_count import draw_changes
from .classes import by_frequency, class_columns, groups_of
from .program import add_runs, draw_and_exit, figure_parser, labels_of
from .run_report.curves import by_count_figure
from .style import new_figure, save

LABEL = "rank error of the class; lower is better"


def class_errors(images: Iterable[tuple[Tensor, Tensor]], pool: int = 1) -> np.ndarray:
    """
    (K,) mean error of the right scores of each class, nan for a class without regions.

    Args:
        images: of each image, one at least, the scores (R, K) of its regions and their classes
            (R,), 0..K.
        pool: how many images are compared with each other, and in memory at once.
    """
    images = iter(images)
    total = torch.zeros(2, 0, dtype=torch.float64)
    while pooled := list(itertools.islice(images, pool)):
        scores, targets = map(torch.cat, zip(*pooled))
        num_classes = scores.shape[1]
        if not total.numel():
            total = total.new_zeros(2, num_classes)
        regions = (targets < num_classes).nonzero()[:, 0]
        classes = targets[regions]
        cells = regions * num_classes + classes
        place = scores.unique(return_inverse=True)[1].double()  # equal ones have the same
        errors = ranking_errors(place, cells, classes, delta=0.5)  # different ones are 1 apart
        total.index_add_(1, classes, torch.stack([errors, torch.ones_like(errors)]))
    return (total[0] / total[1]).numpy()


def score_regions(run: str | Path, num_images: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """
    Of images of the test set the last stage's scores (R, K) of proposed regions, and their classes.

    Args:
        run: output folder of a finished training.
        num_images: of the set, its first ones.
        seed: of the choice among the regions of an image, which is that of the training.

    Raises:
        UserError: the folder holds no finished training.
    """
    from ..engine.checkpoint import LongTailCheckpointer
    from ..engine.class_means import training_images
    from ..engine.setup import load_config
    from ..engine.trainer import LongTailTrainer

    folder = Path(run).resolve()
    for name in ("config.yaml", "model_final.pth", "class_statistics.json"):
        if not (folder / name).is_file():
            raise UserError(f"{run} has no {name}: give the output folder of a finished training")
    counts = str(folder / "class_statistics.json")
    cfg = load_config(str(folder / "config.yaml"), ["LONG_TAIL.STATISTICS", counts]).clone()
    cfg.defrost()
    if not cfg.DATASETS.TEST:
        raise UserError(f"{run} was trained without a test set: DATASETS.TEST is empty")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST[:1]  # the loader of training sets keeps annotations
    model = LongTailTrainer.build_model(cfg).eval()
    LongTailCheckpointer(model).load(str(folder / "model_final.pth"))
    torch.manual_seed(seed)
    batches = itertools.islice(training_images(cfg), num_images)
    return list(scores_of_regions(model, track(batches, "scoring regions", total=num_images)))


def scores_of_regions(
    model: nn.Module, batches: Iterable[list[dict[str, Any]]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """
    As :func:`score_regions`, image after image, under the detector's last stage as it is now.

    Args:
        model: a detector in the mode of testing, with box heads of this package.
        batches: of one annotated image each.
    """
    for batch in batches:
        yield _scored(model, batch)


@torch.no_grad()
def _scored(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    from detectron2.utils.events import EventStorage

    from ..engine.class_means import labelled_regions

    loss = model.roi_heads.box_stages[-1][1].classification_loss
    with EventStorage():  # heads log how many regions they sample
        *_, ((logits, _), targets) = labelled_regions(model, batch, "proposals")
    return loss.scores(logits)[:, :-1].cpu(), targets.cpu()


def draw(
    errors: Sequence[np.ndarray],
    labels: Sequence[str],
    statistics: ClassStatistics,
    path: str | Path,
) -> Path:
    """
    Args:
        errors: (K,) of the baseline and of the method.
        labels: a name for each.
        statistics: counts of the training set.
        path: of the PNG.
    """
    groups = groups_of(statistics)
    figure, axes = new_figure(7.2, 3.6)
    draw_changes(axes, statistics.image_count.numpy(), groups, *errors, labels, "{:.2f}")
    axes.set_ylabel(LABEL)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    order = by_frequency(statistics)
    columns = class_columns(statistics, order)
    columns |= {label: of_run[order].tolist() for label, of_run in zip(labels, errors)}
    return save(figure, path, columns)


def errors_figure(errors: np.ndarray, statistics: ClassStatistics) -> Figure:
    """Errors (K,) of one detector by training images."""
    rows = list(zip(groups_of(statistics), statistics.image_count.tolist(), errors.tolist()))
    figure = by_count_figure(rows, LABEL, "{:.2f}")
    figure.axes[0].set_ylim(-0.03, 1.03)
    return figure


def main() -> None:
    parser = figure_parser("score_ranks", __doc__)
    add_runs(parser, nargs=2)
    parser.add_argument("--images", type=int, default=200, help="of the test set to look at")
    parser.add_argument("--pool", type=int, default=1, help="images to compare with each other")
    arguments = parser.parse_args()

    def work() -> Path:
        from ..data.statistics import read_statistics

        labels = labels_of(arguments)
        scored = [score_regions(run, arguments.images) for run in arguments.runs]
        errors = [class_errors(images, arguments.pool) for images in scored]
        statistics = read_statistics(str(Path(arguments.runs[0]) / "class_statistics.json"))
        return draw(errors, labels, statistics, arguments.output)

    draw_and_exit(work)


if __name__ == "__main__":
    main()
