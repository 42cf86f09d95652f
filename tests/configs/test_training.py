"""Each method x head of the published configs trains two iterations, small, with its sampler."""

import pytest
import torch

from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.trainer import LongTailTrainer

from ..engine.small_set import register, unregister
from ..modeling.detectors import CONFIG, NUM_CLASSES
from .papers_data import NAMES, config_of

DATASET = "papers_test_train"
SMALL_NODES = ("BACKBONE", "RESNETS", "FPN", "ANCHOR_GENERATOR", "RPN", "PIXEL_MEAN", "PIXEL_STD")
"""What makes a detector small without changing its method, from the smallest SynthLT config."""


def small(cfg, folder):
    """The config for images of 64 x 80 pixels, seven classes and a narrow model."""
    source = load_config(CONFIG)
    cfg = cfg.clone()
    cfg.defrost()
    model = cfg.MODEL
    is_retinanet = model.META_ARCHITECTURE == "LongTailRetinaNet"
    for name in SMALL_NODES:
        model[name] = source.MODEL[name]
    model.WEIGHTS, model.DEVICE = "", "cpu"
    model.ROI_HEADS.NUM_CLASSES = model.RETINANET.NUM_CLASSES = NUM_CLASSES
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    model.ROI_HEADS.IN_FEATURES = source.MODEL.ROI_HEADS.IN_FEATURES
    model.ROI_BOX_HEAD.FC_DIM = model.ROI_MASK_HEAD.CONV_DIM = 32
    model.ROI_MASK_HEAD.NUM_CONV = 1
    if is_retinanet:
        model.RETINANET.IN_FEATURES = model.RPN.IN_FEATURES
        model.RETINANET.NUM_CONVS = 1
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (DATASET,), ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE = 2, 0
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, ()
    cfg.LONG_TAIL.SAMPLER.EpisodicSampler.CLASSES_PER_EPISODE = 2
    cfg.LONG_TAIL.REINIT = []  # there is no checkpoint
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return cfg


def method_of(cfg):
    """What distinguishes a method and a head: names and switches, no strengths."""
    node, model = cfg.LONG_TAIL, cfg.MODEL
    return (
        *(model.META_ARCHITECTURE, model.ROI_HEADS.NAME, model.MASK_ON),
        *(model.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE, model.RETINANET.BBOX_REG_LOSS_TYPE),
        *_chosen(node.LOSS),
        *_chosen(node.RANKING),
        *(node.CLASSIFIER.NAME, node.CALIBRATION.NAME, node.MASK_NORM.ENABLED),
        *_switches(node.HARMONIC),
        *(node.CASCADE_AVERAGE, tuple(node.TRAINABLE), cfg.DATALOADER.SAMPLER_TRAIN),
    )


def _chosen(node):
    return (node.NAME, *_switches(node[node.NAME])) if node.NAME else ("",)


def _switches(node):
    return tuple(value for value in node.values() if isinstance(value, bool | str))


METHODS = {method_of(config_of(name)): name for name in reversed(NAMES)}
"""Of each method the first config that has it."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    register(DATASET, tmp_path_factory.mktemp("papers"))
    yield
    unregister(DATASET)


@pytest.mark.parametrize("name", METHODS.values())
def test_trains(name, dataset, tmp_path):
    trainer = LongTailTrainer(small(config_of(name), tmp_path))
    trainer.resume_or_load(resume=False)
    trained = [p for p in trainer._trainer.model.parameters() if p.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    trainer.train()
    assert trainer.iter == 2
    assert all(torch.isfinite(parameter).all() for parameter in trained)
    assert any(not torch.equal(old, new) for old, new in zip(before, trained))
