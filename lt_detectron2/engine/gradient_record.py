"""The gradients that each class has received in a training, as a file of columns."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import replacing

GRADIENTS_FILE = "gradients.npz"


@dataclass(frozen=True)
class GradientRecord:
    """
    Snapshots of accumulated gradients.

    Attributes:
        iterations: (T,) int64, iterations done at each snapshot, ascending.
        sums: (T, S, 3, K) float64, the sums of |d loss / d logit| until then, of each stage of the
            box head, by kind of region (see ``gradient_sums.KINDS``) and class.
    """

    iterations: np.ndarray
    sums: np.ndarray

    def ratio(self) -> np.ndarray:
        """(T, K) accumulated positive over negative gradient of all stages; nan before any."""
        positive, foreground, background = self._by_kind()
        return _divide(positive, foreground + background)

    def foreground_share(self) -> np.ndarray:
        """(T, K) share of the negative gradient that regions of other classes gave."""
        _, foreground, background = self._by_kind()
        return _divide(foreground, foreground + background)

    def _by_kind(self) -> np.ndarray:
        return self.sums.sum(axis=1).swapaxes(0, 1)  # (3, T, K)

    def until(self, iteration: int) -> GradientRecord:
        """The snapshots that were taken up to an iteration."""
        taken = self.iterations <= iteration
        return GradientRecord(self.iterations[taken], self.sums[taken])

    def with_snapshot(self, iteration: int, sums: np.ndarray) -> GradientRecord:
        """One more: (S, 3, K) sums."""
        return GradientRecord(
            np.append(self.iterations, iteration), np.concatenate([self.sums, sums[None]])
        )

    @classmethod
    def empty(cls, num_stages: int, num_classes: int) -> GradientRecord:
        """No snapshots."""
        return cls(np.zeros(0, np.int64), np.zeros((0, num_stages, 3, num_classes)))

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        with replacing(str(path), "wb") as file:
            np.savez(file, iterations=self.iterations, sums=self.sums)

    @classmethod
    def load(cls, path: str | Path) -> GradientRecord:
        """
        Read what :meth:`save` has written.

        Raises:
            UserError: no such file, or another one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["iterations"], file["sums"])
        except FileNotFoundError:
            raise UserError(
                f"expected the gradients of a training at {path}, found no such file: train with "
                "LONG_TAIL.GRADIENT_PERIOD 100"
            ) from None
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"expected the gradients of a training in {path}: {error}") from error


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)
