"""
What Harmonic coupling makes of the gradients of a positive's classification and box loss.

    python -m lt_detectron2.analysis.harmonic_gradients

With C the cross entropy and L the box loss of a positive, the coupled loss is differentiated by C
and by L (supplement of https://arxiv.org/abs/2108.10809, Figures 1 and 2). Each gradient is 1
without coupling; below 0 it is turned round, and pushes the score or the box the wrong way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from ..losses.harmonic import HarmonicCoupling
from .program import draw_and_exit, figure_parser
from .style import RUN_COLOURS, new_figure, save, tidy

LARGEST_LOSS = 5.0
STEPS = 51
SHOWN_LOSSES = (0.0, 0.5, 1.0, 2.0, 4.0)
LARGEST_GRADIENT = 2.0


def gradients(
    class_losses: np.ndarray, box_losses: np.ndarray, *, detach: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """
    Derivatives of the coupled loss of single positives by their C and by their L.

    Args:
        class_losses: (P,) C, cross entropies.
        box_losses: (P,) L.
        detach: hold the factors constant.
    """
    losses = [torch.tensor(values, requires_grad=True) for values in (class_losses, box_losses)]
    coupled = HarmonicCoupling(detach=detach)(*losses)
    by_class, by_box = torch.autograd.grad(sum(part.sum() for part in coupled), losses)
    return by_class.numpy(), by_box.numpy()


def draw(path: str | Path, *, detach: bool = False) -> Path:
    """Maps over both losses above, cuts through them below; the CSV holds the maps."""
    losses = np.linspace(0, LARGEST_LOSS, STEPS)
    class_grid, box_grid = (grid.ravel() for grid in np.meshgrid(losses, losses, indexing="ij"))
    by_class, by_box = gradients(class_grid, box_grid, detach=detach)
    figure, grid = new_figure(8.6, 6.4, nrows=2, ncols=2)
    names = ("gradient by the classification loss C", "gradient by the box loss L")
    for (top, bottom), values, name in zip(grid.T, (by_class, by_box), names):
        surface = values.reshape(STEPS, STEPS)
        mesh = _draw_map(top, losses, surface)
        top.set_title(name, fontsize=10)
        is_by_class = values is by_class
        _draw_cuts(
            bottom, losses, surface if is_by_class else surface.T, "C" if is_by_class else "L"
        )
    figure.colorbar(mesh, ax=grid[0], shrink=0.85, extend="min", label="gradient; 1 uncoupled")
    columns = {
        "class_loss": class_grid,
        "box_loss": box_grid,
        "gradient_by_class_loss": by_class,
        "gradient_by_box_loss": by_box,
    }
    return save(figure, path, columns)


def _draw_map(axes: Axes, losses: np.ndarray, surface: np.ndarray):
    """``surface`` is (C, L); the line is where the gradient turns round."""
    norm = TwoSlopeNorm(0, -LARGEST_GRADIENT, LARGEST_GRADIENT)
    mesh = axes.pcolormesh(losses, losses, surface.T, cmap="RdBu", norm=norm, shading="gouraud")
    if surface.min() < 0 < surface.max():
        axes.contour(losses, losses, surface.T, levels=[0], colors="black", linewidths=1)
    axes.set_xlabel("classification loss C")
    axes.set_ylabel("box loss L")
    return mesh


def _draw_cuts(axes: Axes, losses: np.ndarray, surface: np.ndarray, along: str) -> None:
    """``surface`` is (along, other)."""
    other = "L" if along == "C" else "C"
    for i, value in enumerate(SHOWN_LOSSES):
        cut = surface[:, np.abs(losses - value).argmin()]
        colour = RUN_COLOURS[i % len(RUN_COLOURS)]
        axes.plot(losses, cut, color=colour, linewidth=1.6, label=f"{other} = {value:g}")
    axes.axhline(0, color="black", linewidth=0.7)
    axes.axhline(1, color="black", linewidth=0.7, linestyle=":")
    axes.set_ylim(-3, 2.2)
    axes.set_xlim(0, LARGEST_LOSS)
    axes.set_xlabel("classification loss C" if along == "C" else "box loss L")
    axes.set_ylabel("gradient")
    axes.legend(frameon=False, fontsize=7, loc="lower right")
    tidy(axes)


def main() -> None:
    parser = figure_parser("harmonic_gradients", __doc__)
    parser.add_argument("--detach", action="store_true", help="hold the factors constant")
    arguments = parser.parse_args()
    draw_and_exit(lambda: draw(arguments.output, detach=arguments.detach))


if __name__ == "__main__":
    main()
