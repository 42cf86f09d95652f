"""Classifier norms of checkpoints of ours and others: numbers, layouts, and what is refused."""

import pickle

import numpy as np
import pytest
import torch

from lt_detectron2.analysis.weight_norms import draw, norms_of_model, read_norms, running_mean
from lt_detectron2.errors import CheckpointError, UserError
from lt_detectron2.losses import GroupSoftmaxLoss
from tests.modeling.detectors import NUM_CLASSES, small_config, small_detector
from tests.modeling.detectors import STATISTICS as SMALL_STATISTICS

from .figures import BY_FREQUENCY, STATISTICS, numbers, read_csv

KEY = "roi_heads.box_predictor.cls_score.weight"


def slow_norms(weight, rows):
    return [sum(float(x) ** 2 for x in weight[row]) ** 0.5 for row in rows]


def save(path, **state):
    torch.save({"model": state}, path)
    return path


def test_norms_by_rank(tmp_path):
    weight = torch.randn(5, 6)  # four classes and the background
    path = save(tmp_path / "model.pth", **{KEY: weight, "backbone.weight": torch.ones(5, 6)})
    rows = read_csv(
        draw([read_norms(path, "softmax", STATISTICS)], STATISTICS, tmp_path / "norms.png")
    )
    assert [row["class"] for row in rows] == ["cat", "dog", "emu", "newt"]
    assert numbers(rows, "softmax") == pytest.approx(slow_norms(weight, BY_FREQUENCY), rel=1e-5)


def test_stages_are_averaged(tmp_path):
    weights = [torch.randn(6, 3) for _ in range(3)]
    keys = [f"roi_heads.box_predictor.{stage}.cls_score.weight" for stage in range(3)]
    norms = read_norms(save(tmp_path / "m.pth", **dict(zip(keys, weights))), "", STATISTICS)
    expected = np.mean([slow_norms(weight, range(4)) for weight in weights], axis=0)
    np.testing.assert_allclose(norms.norms, expected, rtol=1e-5)


def test_zoo_file_and_another_key(tmp_path):
    weight = np.arange(10.0).reshape(5, 2)
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": {KEY: weight}}))
    np.testing.assert_allclose(read_norms(path, "", STATISTICS).norms, slow_norms(weight, range(4)))
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"bbox_head.fc_cls.weight": torch.from_numpy(weight)}}, path)
    norms = read_norms(path, "", STATISTICS, r"bbox_head\.fc_cls\.weight").norms
    np.testing.assert_allclose(norms, slow_norms(weight, range(4)))


@pytest.mark.parametrize(
    "loss, rows",
    [
        (
            "GroupSoftmaxLoss",
            GroupSoftmaxLoss(NUM_CLASSES, SMALL_STATISTICS).class_columns.tolist(),
        ),
        ("SeesawLoss", range(NUM_CLASSES)),
    ],
)
def test_columns_are_found_by_the_config(tmp_path, loss, rows):
    cfg = small_config(tmp_path, "LongTailROIHeads", loss)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    model = small_detector(cfg)
    weight = model.roi_heads.box_predictor.cls_score.weight.detach()
    save(tmp_path / "model_final.pth", **model.state_dict())
    norms = read_norms(tmp_path, loss, SMALL_STATISTICS).norms
    np.testing.assert_allclose(norms, slow_norms(weight, rows), rtol=1e-5)
    np.testing.assert_allclose(norms_of_model(model, loss).norms, norms, rtol=1e-6)
    with pytest.raises(UserError, match="is of 7 classes, the counts are of 4"):
        read_norms(tmp_path, loss, STATISTICS)


def test_mean_of_neighbours():
    values = np.arange(60.0) ** 2
    expected = [np.mean(values[max(0, i - 3) : i + 4]) for i in range(60)]
    np.testing.assert_allclose(running_mean(values), expected)
    assert running_mean(values[:5]).tolist() == values[:5].tolist()


def test_what_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_norms(tmp_path, "", STATISTICS)
    path = tmp_path / "model.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged"):
        read_norms(path, "", STATISTICS)
    save(path, **{"backbone.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="has no classifier"):
        read_norms(path, "", STATISTICS)
    save(path, **{KEY: torch.ones(9, 2)})
    with pytest.raises(UserError, match="has 9 logits for 4 classes, and no config.yaml"):
        read_norms(path, "", STATISTICS)
