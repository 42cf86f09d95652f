"""
The HIoU loss and its gradient against the IoU, for several exponents.

    python -m lt_detectron2.analysis.hiou --gamma 0 0.4 0.8 1

A larger exponent leaves more of the gradient to boxes that are nearly right
(https://arxiv.org/abs/2108.10809, Figure 4). 0 is the IoU loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..losses.harmonic import harmonic_iou_loss
from .program import draw_and_exit, figure_parser
from .style import RUN_COLOURS, new_figure, save, tidy

GAMMAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def curve(gamma: float, ious: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """
    Loss and its derivative by the IoU at these IoUs, from the loss function itself.

    Args:
        gamma: exponent of HIoU.
        ious: (N,) float64 in (0, 1].
    """
    ious = ious.detach().clone().requires_grad_()
    # A box of height 1 within one of height 1 and width 1: their IoU is its width.
    zero, one = torch.zeros_like(ious), torch.ones_like(ious)
    boxes = torch.stack([zero, zero, ious, one], dim=1)
    losses = harmonic_iou_loss(boxes, torch.stack([zero, zero, one, one], dim=1), gamma=gamma)
    (slopes,) = torch.autograd.grad(losses.sum(), ious)
    return losses.detach().numpy(), slopes.numpy()


def draw(path: str | Path, gammas: Sequence[float] = GAMMAS) -> Path:
    """Loss on the left, size of its gradient on the right."""
    ious = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    columns = {"iou": ious.tolist()}
    figure, (left, right) = new_figure(7.6, 3.2, ncols=2)
    for i, gamma in enumerate(gammas):
        losses, slopes = curve(gamma, ious)
        columns |= {f"loss_{gamma:g}": losses, f"gradient_{gamma:g}": slopes}
        style = {"color": RUN_COLOURS[i % len(RUN_COLOURS)], "linewidth": 1.6}
        left.plot(ious, losses, label=f"γ = {gamma:g}" + (" (IoU)" if gamma == 0 else ""), **style)
        right.plot(ious, np.abs(slopes), **style)
    left.set_ylabel("loss")
    right.set_ylabel("size of the gradient by the IoU")
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("IoU")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        tidy(axes)
    return save(figure, path, columns)


def main() -> None:
    parser = figure_parser("hiou", __doc__)
    parser.add_argument("--gamma", nargs="+", type=float, default=GAMMAS)
    arguments = parser.parse_args()

    def work() -> Path:
        try:
            return draw(arguments.output, arguments.gamma)
        except ValueError as error:
            raise UserError(str(error)) from error

    draw_and_exit(work)


if __name__ == "__main__":
    main()
