"""LONG_TAIL.LOSS.IMPLEMENTATION: what computes the loss."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from lt_detectron2.errors import ConfigError
from lt_detectron2.modeling import classification_loss
from lt_detectron2.modeling.classification_loss import build_classification_loss

from .detectors import small_config


def _config(folder: Path, name: str) -> CfgNode:
    overrides = ("LONG_TAIL.LOSS.IMPLEMENTATION", name)
    return small_config(folder, "LongTailROIHeads", "SeesawLoss", *overrides)


@pytest.mark.parametrize("name", ["auto", "torch", "triton"])
def test_loss_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(classification_loss, "triton_obstacle", lambda: None)
    assert build_classification_loss(_config(tmp_path, name), None).implementation == name


def test_unknown_name_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="IMPLEMENTATION is 'cuda', expected one of: auto, torch"):
        build_classification_loss(_config(tmp_path, "cuda"), None)


def test_missing_triton_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(classification_loss, "triton_obstacle", lambda: "it is not installed")
    with pytest.raises(ConfigError, match="is triton, but it is not installed: leave it at auto"):
        build_classification_loss(_config(tmp_path, "triton"), None)
