"""Curves of formulas: their CSV against the derivatives of the paper's supplement, by hand."""

import math

import numpy as np
import pytest

from lt_detectron2.analysis import harmonic_gradients, hiou

from .figures import numbers, read_csv


def test_harmonic_gradients(tmp_path):
    rows = read_csv(harmonic_gradients.draw(tmp_path / "harmonic.png"))
    assert len(rows) == 51**2
    for row in rows[::97]:
        c, box = float(row["class_loss"]), float(row["box_loss"])
        by_class = 1 + math.exp(-box) - box * math.exp(-c)
        by_box = 1 + math.exp(-c) - c * math.exp(-box)
        assert float(row["gradient_by_class_loss"]) == pytest.approx(by_class, abs=1e-5)
        assert float(row["gradient_by_box_loss"]) == pytest.approx(by_box, abs=1e-5)


def test_detached_gradients_are_never_turned_round(tmp_path):
    rows = read_csv(harmonic_gradients.draw(tmp_path / "harmonic.png", detach=True))
    for row in rows[::97]:
        expected = 1 + math.exp(-float(row["box_loss"]))
        assert float(row["gradient_by_class_loss"]) == pytest.approx(expected, abs=1e-5)


def test_hiou(tmp_path):
    rows = read_csv(hiou.draw(tmp_path / "hiou.png", gammas=(0.0, 0.8)))
    ious = np.array(numbers(rows, "iou"))
    for gamma in (0.0, 0.8):
        loss = (1 + ious) ** gamma * (1 - ious)
        slope = (1 + ious) ** (gamma - 1) * ((gamma - 1) - (gamma + 1) * ious)
        np.testing.assert_allclose(numbers(rows, f"loss_{gamma:g}"), loss, rtol=1e-4)
        np.testing.assert_allclose(numbers(rows, f"gradient_{gamma:g}"), slope, rtol=1e-4)
    with pytest.raises(ValueError, match="gamma must lie in 0..1"):
        hiou.draw(tmp_path / "hiou.png", gammas=(2.0,))
