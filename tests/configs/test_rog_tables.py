"""The rows of Tables A1 and A2 of ROG: switches, sampler and recipe."""

import pytest
import torch

from lt_detectron2.losses import EqualizationLossV2, GAPLoss
from lt_detectron2.modeling.components import arguments, build_ranking_loss, hyper_parameters

from ..modeling.detectors import NUM_CLASSES, STATISTICS
from .papers_data import GRID, ROWS, config_of

RANDOM, RFS = "TrainingSampler", "RepeatFactorTrainingSampler"
SWITCHES = ("category_specific", "statistic", "online", "exclude_foreground")
TABLE_A2 = {
    "row1": (False, False, None, None),
    "row2": (True, False, None, False),
    "row3": (True, True, False, False),
    "row4": (True, True, True, False),
    "row5": (True, True, False, True),
    "row6": (True, True, True, True),
}
"""Switches of each row, None where one has no effect."""

NAMES = [row.name for row in ROWS if row.table.key in ("rog_table_a1", "rog_table_a2")]


def config(name):
    [row] = [row for row in ROWS if row.name == name]
    return config_of(name if row.config == GRID else row.config)


def expected(name):
    """Sampler and arguments of GAP loss, read from the name of a row."""
    table, row = name.split("/")
    if table == "rog_table_a2":
        switches = {k: v for k, v in zip(SWITCHES, TABLE_A2[row]) if v is not None}
        return RANDOM, switches | {"gamma": 1.0, "weight": 1.0}
    sampler, gamma, weight = row.split("_")
    values = {"gamma": float(gamma[len("gamma") :]), "weight": float(weight[len("lambda") :])}
    return {"random": RANDOM, "rfs": RFS}[sampler], dict.fromkeys(SWITCHES, True) | values


def test_all_rows_are_there():
    assert len(NAMES) == 8 + 6


@pytest.mark.parametrize("name", NAMES)
def test_switches_of_the_row(name):
    sampler, switches = expected(name)
    cfg = config(name)
    assert cfg.LONG_TAIL.RANKING.NAME == "GAPLoss"
    gap = arguments(cfg.LONG_TAIL.RANKING.GAPLoss)
    published = {"delta": 0.5, "ap_style": False, "sync_counts": False}
    assert gap == gap | switches | published
    assert cfg.DATALOADER.SAMPLER_TRAIN == sampler
    assert cfg.DATALOADER.REPEAT_THRESHOLD == (0.001 if sampler == RFS else 0.0)
    assert not cfg.LONG_TAIL.REPEAT_THRESHOLD


@pytest.mark.parametrize("name", NAMES)
def test_recipe_of_the_row(name):
    solver = config(name).SOLVER
    assert solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == "full_model"
    assert solver.CLIP_GRADIENTS.CLIP_VALUE == 5
    assert solver.WARMUP_ITERS == 500 and solver.WARMUP_FACTOR == 1e-4
    assert solver.IMS_PER_BATCH == 4 * solver.REFERENCE_WORLD_SIZE == 16


def test_classification_loss_is_sigmoid_cross_entropy_without_a_prior():
    cfg = config(NAMES[0])
    assert cfg.LONG_TAIL.LOSS.NAME == "EqualizationLossV2"
    node = arguments(cfg.LONG_TAIL.LOSS.EqualizationLossV2)
    loss = EqualizationLossV2(NUM_CLASSES, **node)
    classifier = torch.nn.Linear(4, loss.num_logits)
    loss.init_classifier(classifier)
    assert not classifier.bias.any()
    logits, targets = torch.randn(20, NUM_CLASSES + 1), torch.arange(20) % (NUM_CLASSES + 1)
    loss(torch.randn(20, NUM_CLASSES + 1), targets)  # a past, which must not matter
    one_hot = torch.nn.functional.one_hot(targets, NUM_CLASSES + 1).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="sum")
    torch.testing.assert_close(loss(logits, targets), bce / 20)


@pytest.mark.parametrize("name", ["rog_table_a1/rfs_gamma0.5_lambda0.1", "rog_table_a2/row5"])
def test_ranking_loss_of_the_row(name):
    cfg = config(name).clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    gap = build_ranking_loss(cfg, STATISTICS)
    assert isinstance(gap, GAPLoss)
    switches = expected(name)[1]
    assert set(switches) < set(hyper_parameters(GAPLoss))
    assert {switch: getattr(gap, switch) for switch in switches} == switches
    if not gap.online:
        assert gap.instance_count.tolist() == STATISTICS.instance_count.tolist()
    logits = torch.randn(30, NUM_CLASSES, requires_grad=True)
    ranked = gap(logits, torch.arange(30) % (NUM_CLASSES + 1))
    ranked.loss.backward()
    assert 0 < ranked.value < 1 and logits.grad.abs().sum() > 0
