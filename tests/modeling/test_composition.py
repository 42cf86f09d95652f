"""Any loss x ranking x coupling x box loss x classifier x mask x sampler x head, from a config."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from lt_detectron2.engine.gradient_clipping import build_clipped_optimizer
from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.errors import ConfigError, UserError
from lt_detectron2.layers import (
    CausalClassifier,
    CosineLinear,
    LearnableWeightScaling,
    NormedConv2d,
)
from lt_detectron2.losses import GAPLoss
from lt_detectron2.modeling.classification_loss import loss_classes
from lt_detectron2.modeling.components import build_ranking_loss, classifiers
from lt_detectron2.modeling.composition import check_composition
from lt_detectron2.modeling.mask_head import normalize_mask_predictor
from lt_detectron2.modeling.swin import check_swin

from ..losses.factory import build
from .covering import covering_set, pairs
from .detectors import NUM_CLASSES, STATISTICS, batch, small_config

DATASET = "composition_test_train"
BITMASK = ("INPUT.MASK_FORMAT", "bitmask")
GAP, HARMONIC = "LONG_TAIL.RANKING.GAPLoss", "LONG_TAIL.HARMONIC"

CHOICES = {
    "ranking": {
        "none": (),
        "online": ("LONG_TAIL.RANKING.NAME", "GAPLoss"),
        "static": ("LONG_TAIL.RANKING.NAME", "GAPLoss", f"{GAP}.ONLINE", "False"),
    },
    "harmonic": {
        "off": (),
        "through": (f"{HARMONIC}.ENABLED", "True"),
        "detached": (f"{HARMONIC}.ENABLED", "True", f"{HARMONIC}.DETACH", "True"),
    },
    "box": {
        "smooth_l1": (),
        "hiou": ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "smooth_l1+hiou"),
    },
    "classifier": {
        "linear": (),
        "cosine": ("LONG_TAIL.CLASSIFIER.NAME", "CosineLinear"),
        "causal": ("LONG_TAIL.CLASSIFIER.NAME", "CausalClassifier"),
        "scaled": ("LONG_TAIL.CLASSIFIER.NAME", "LearnableWeightScaling"),
    },
    "mask": {"plain": (), "normed": ("LONG_TAIL.MASK_NORM.ENABLED", "True")},
    "sampler": {
        "random": (),
        "rfs": (
            *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
            *("LONG_TAIL.REPEAT_THRESHOLD", "auto"),
        ),
    },
    "head": {"standard": "LongTailROIHeads", "cascade": "LongTailCascadeROIHeads"},
    "loss": {name: name for name in sorted(loss_classes())},
}

CLASSIFIERS = {
    "linear": nn.Linear,
    "cosine": CosineLinear,
    "causal": CausalClassifier,
    "scaled": LearnableWeightScaling,
}

REMEDIES = {
    (("classifier", "cosine"), ("loss", "LDAMLoss")): (
        *("LONG_TAIL.CLASSIFIER.CosineLinear.TEMPERATURE", "1.0"),
    ),
    (("harmonic", "through"), ("loss", "FocalLoss")): (
        *("LONG_TAIL.LOSS.FocalLoss.NORMALIZER", "regions"),
    ),
    (("harmonic", "through"), ("loss", "EqualizedFocalLoss")): (
        *("LONG_TAIL.LOSS.EqualizedFocalLoss.NORMALIZER", "regions"),
    ),
}
"""What a pair needs beside its own keys: the remedy that its refusal names."""


def starts_from_bias(loss_class):
    loss = build(loss_class, STATISTICS)
    classifier = nn.Linear(1, loss.num_logits)
    nn.init.zeros_(classifier.bias)
    loss.init_classifier(classifier)
    return bool(classifier.bias.any())


REFUSED = {(("harmonic", "through"), ("loss", "GroupSoftmaxLoss"))} | {
    (("classifier", "causal"), ("loss", name))
    for name, loss_class in loss_classes().items()
    if starts_from_bias(loss_class)
}
"""Pairs for which there is no remedy but another choice; the causal classifier has no bias."""


def is_valid(combination):
    return not pairs(combination) & REFUSED


COMBINATIONS = covering_set({factor: list(CHOICES[factor]) for factor in CHOICES}, is_valid)


def overrides_of(combination):
    keys = [CHOICES[factor][choice] for factor, choice in combination.items()]
    keys = [key for key in keys if isinstance(key, tuple)]
    keys += [REMEDIES[pair] for pair in sorted(pairs(combination) & set(REMEDIES))]
    return itertools.chain(*keys)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six images with two objects each, for Detectron2's own loader."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    records = []
    for index in range(6):
        path = str(folder / f"{index}.png")
        Image.fromarray(generator.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(path)
        annotations = []
        for number in range(2):
            x0, y0 = generator.integers(0, 36, 2).tolist()
            x1, y1 = x0 + 16 + 6 * number, y0 + 22
            annotations.append(
                {
                    "bbox": [x0, y0, x1, y1],
                    "bbox_mode": 0,  # corners
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    "category_id": (2 * index + number) % NUM_CLASSES,
                }
            )
        record = {"file_name": path, "image_id": index, "height": 64, "width": 80}
        records.append({**record, "annotations": annotations})
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).thing_classes = [f"class {c}" for c in range(NUM_CLASSES)]
    yield DATASET
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def config_of(combination, folder, dataset):
    return small_config(
        folder,
        CHOICES["head"][combination["head"]],
        combination["loss"],
        *BITMASK,
        *overrides_of(combination),
        *("DATASETS.TRAIN", f"('{dataset}',)", "SOLVER.IMS_PER_BATCH", "2"),
    )


def test_covering_set_holds_every_pair():
    found = set().union(*(pairs(combination) for combination in COMBINATIONS))
    factors = {factor: [(factor, choice) for choice in CHOICES[factor]] for factor in CHOICES}
    possible = set()
    for a, b in itertools.combinations(sorted(factors), 2):
        possible |= set(itertools.product(factors[a], factors[b]))
    assert found == possible - REFUSED
    assert set(CLASSIFIERS.values()) == set(classifiers().values())
    assert len(COMBINATIONS) < len(possible) / 3


@pytest.mark.parametrize(
    "combination", COMBINATIONS, ids=lambda combination: "-".join(combination.values())
)
def test_trains_two_steps_and_detects(combination, tmp_path, dataset):
    cfg = config_of(combination, tmp_path, dataset)
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = build_clipped_optimizer(cfg, model)
    loader = iter(LongTailTrainer.build_train_loader(cfg))
    predictors = model.roi_heads.box_predictor
    predictors = predictors if combination["head"] == "cascade" else [predictors]

    assert {type(p.cls_score) for p in predictors} == {CLASSIFIERS[combination["classifier"]]}
    is_normed = combination["mask"] == "normed"
    assert isinstance(model.roi_heads.mask_head.predictor, NormedConv2d) == is_normed
    ranks = combination["ranking"] != "none"
    assert all(isinstance(p.ranking_loss, GAPLoss) == ranks for p in predictors)
    assert all((p.harmonic is not None) == (combination["harmonic"] != "off") for p in predictors)

    before = [p.cls_score.weight.detach().clone() for p in predictors]
    with EventStorage(18) as storage:  # the second step is one that is logged
        for _ in range(2):
            losses = model(next(loader))
            assert all(torch.isfinite(loss) for loss in losses.values()), losses
            kinds = {name.split("_stage")[0] for name in losses if not name.startswith("loss_rpn")}
            assert kinds == {"loss_cls", "loss_box_reg", "loss_mask"} | (
                {"loss_rank"} if ranks else set()
            )
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            storage.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert not any(torch.equal(p.cls_score.weight, w) for p, w in zip(predictors, before))
    logged = {name.split("/", 1)[-1] for name in storage.latest()}
    assert any(name.endswith("unweighted_loss") for name in logged) == ranks
    assert any("reversed_box" in name for name in logged) == (combination["harmonic"] == "through")

    model.eval()
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 64, 80, dtype=torch.uint8)}])
    assert found["instances"].pred_masks.shape[1:] == (64, 80)


@pytest.mark.parametrize("loss", sorted(loss_classes()))
def test_start_of_the_classifier(loss, tmp_path):
    """Each loss's bias survives, and cosine classifiers start with different directions."""
    linear, cosine = (
        build_model(small_config(tmp_path, "LongTailROIHeads", loss, *BITMASK, *keys))
        for keys in (
            CHOICES["classifier"]["linear"],
            (
                *CHOICES["classifier"]["cosine"],
                *REMEDIES.get((("classifier", "cosine"), ("loss", loss)), ()),
            ),
        )
    )
    linear, cosine = (model.roi_heads.box_predictor.cls_score for model in (linear, cosine))
    assert type(linear) is nn.Linear and type(cosine) is CosineLinear
    assert torch.equal(linear.bias, cosine.bias)
    assert cosine.weight.std(dim=0).min() > 0
    directions = nn.functional.normalize(cosine.weight.detach(), dim=1)
    others = (directions @ directions.T).fill_diagonal_(0)
    assert others.abs().max() < 0.6


def test_parameters_reach_the_components(tmp_path):
    keys = {
        "LONG_TAIL.CLASSIFIER.CosineLinear.TEMPERATURE": "12.0",
        "LONG_TAIL.MASK_NORM.POWER": "0.5",
        f"{GAP}.GAMMA": "1.0",
        f"{HARMONIC}.MARGIN": "0.3",
        f"{HARMONIC}.BOX_FACTOR": "loss",
        "LONG_TAIL.HIOU.GAMMA": "0.25",
        "LONG_TAIL.HIOU.ALPHA": "2.0",
    }
    names = [CHOICES[f][c] for f, c in (("classifier", "cosine"), ("mask", "normed"))]
    names += [CHOICES[f][c] for f, c in (("ranking", "online"), ("harmonic", "through"))]
    cfg = small_config(
        tmp_path,
        "LongTailROIHeads",
        "SeesawLoss",
        *itertools.chain(*names, *keys.items()),
    )
    heads = build_model(cfg).roi_heads
    layers = heads.box_predictor
    assert layers.cls_score.temperature == 12 and heads.mask_head.predictor.power == 0.5
    assert layers.ranking_loss.gamma == 1 and layers.box_loss.gamma == 0.25
    assert layers.harmonic.margin == 0.3 and layers.harmonic.box_factor == "loss"
    assert layers.box_loss.alpha == 2


def test_normed_mask_predictor_keeps_keys_and_starts_by_fan_out(tmp_path):
    plain = build_model(small_config(tmp_path))
    normed = build_model(
        small_config(
            tmp_path,
            "LongTailROIHeads",
            "SoftmaxCrossEntropyLoss",
            *CHOICES["mask"]["normed"],
            *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "False"),
        )
    )
    assert list(plain.state_dict()) == list(normed.state_dict())
    weight = normed.roi_heads.mask_head.predictor.weight
    assert abs(weight.std().item() - (2 / NUM_CLASSES) ** 0.5) < 0.1


def test_cascade_stages_rank_with_their_own_counts(tmp_path):
    keys = CHOICES["ranking"]["online"]
    cfg = small_config(tmp_path, "LongTailCascadeROIHeads", "SeesawLoss", *BITMASK, *keys)
    model = build_model(cfg)
    with EventStorage():
        losses = model(batch())
    assert {f"loss_rank_stage{stage}" for stage in range(3)} <= set(losses)
    counts = [layers.ranking_loss.region_count for layers in model.roi_heads.box_predictor]
    assert len({id(count) for count in counts}) == 3 and all(count.any() for count in counts)


@pytest.mark.parametrize(
    "path",
    sorted(set(Path("configs").rglob("*.yaml")) - {Path("configs/grids.yaml")}),
    ids=lambda path: path.stem,
)
def test_every_config_composes(path):
    cfg = load_config(str(path))
    try:
        check_swin(cfg)
    except ConfigError as refusal:
        pytest.skip(str(refusal))
    check_composition(cfg)


# ---- refusals


REFUSALS = {
    "unknown ranking": (("LONG_TAIL.RANKING.NAME", "APLoss"), "RANKING.NAME is 'APLoss', expected"),
    "unknown classifier": (
        ("LONG_TAIL.CLASSIFIER.NAME", "Cosine"),
        "CLASSIFIER.NAME is 'Cosine', expected one of: CausalClassifier, CosineLinear, Lear",
    ),
    "unknown box loss": (
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "iou"),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is 'iou', expected one of: smooth_l1, giou",
    ),
    "masks off": (
        ("LONG_TAIL.MASK_NORM.ENABLED", "True", "MODEL.MASK_ON", "False"),
        "MODEL.MASK_ON is False: set MASK_ON, or switch MASK_NORM off",
    ),
    "groups coupled": (
        (f"{HARMONIC}.ENABLED", "True", "LONG_TAIL.LOSS.NAME", "GroupSoftmaxLoss"),
        "a normaliser each: set LONG_TAIL.HARMONIC.DETACH True",
    ),
    "other normaliser": (
        (f"{HARMONIC}.ENABLED", "True", "LONG_TAIL.LOSS.NAME", "FocalLoss"),
        "set LONG_TAIL.LOSS.FocalLoss.NORMALIZER regions, or",
    ),
    "ceiling": (
        (f"{HARMONIC}.ENABLED", "True", "LONG_TAIL.LOSS.NAME", "GumbelLoss")
        + ("LONG_TAIL.LOSS.GumbelLoss.LOSS_CEILING", "20.0"),
        "GumbelLoss.LOSS_CEILING bounds their mean: set it to None",
    ),
    "cosines scaled twice": (
        ("LONG_TAIL.CLASSIFIER.NAME", "CosineLinear", "LONG_TAIL.LOSS.NAME", "LDAMLoss"),
        "set LONG_TAIL.CLASSIFIER.CosineLinear.TEMPERATURE 1.0",
    ),
    "Detectron2's heads": (
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "LONG_TAIL.CLASSIFIER.NAME", "CosineLinear"),
        "LONG_TAIL.CLASSIFIER.NAME has no effect on MODEL.ROI_HEADS.NAME 'CascadeROIHeads'",
    ),
    "proposal scores in Detectron2's heads": (
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "LONG_TAIL.PROPOSAL_SCORE", "True"),
        "LONG_TAIL.PROPOSAL_SCORE has no effect on MODEL.ROI_HEADS.NAME 'StandardROIHeads'",
    ),
    "RetinaNet": (
        ("MODEL.META_ARCHITECTURE", "RetinaNet", f"{HARMONIC}.ENABLED", "True"),
        "LONG_TAIL.HARMONIC.ENABLED has no effect on RetinaNet: use LongTailRetinaNet",
    ),
    "other loss for RetinaNet": (
        ("MODEL.META_ARCHITECTURE", "LongTailRetinaNet", "LONG_TAIL.LOSS.NAME", "SeesawLoss"),
        "LongTailRetinaNet does not know LONG_TAIL.LOSS.NAME: it trains its own focal loss",
    ),
    "contrast for RetinaNet": (
        ("MODEL.META_ARCHITECTURE", "LongTailRetinaNet", f"{HARMONIC}.TASK_CONTRAST", "True"),
        "RetinaNet scores them one by one: switch TASK_CONTRAST off",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_before_anything_is_built(case):
    overrides, message = REFUSALS[case]
    cfg = load_config("configs/SynthLT/Base-smoke.yaml", list(overrides))
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_composition(cfg)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            (f"{HARMONIC}.ENABLED", "True", f"{HARMONIC}.TASK_CONTRAST", "True")
            + ("LONG_TAIL.LOSS.NAME", "EqualizationLossV2"),
            "EqualizationLossV2 scores classes one by one: use a softmax loss",
        ),
        (
            ("LONG_TAIL.CLASSIFIER.NAME", "CosineLinear")
            + ("LONG_TAIL.CLASSIFIER.CosineLinear.EPS", "0.0"),
            "LONG_TAIL.CLASSIFIER.CosineLinear: eps must be a finite number above 0",
        ),
        (("LONG_TAIL.HIOU.GAMMA", "2.0"), "LONG_TAIL.HIOU: gamma must lie in 0..1, got 2.0"),
        (
            (f"{HARMONIC}.ENABLED", "True", f"{HARMONIC}.BOX_FACTOR", "p"),
            "LONG_TAIL.HARMONIC: box_factor must be one of",
        ),
        (
            ("LONG_TAIL.RANKING.NAME", "GAPLoss", f"{GAP}.CATEGORY_SPECIFIC", "False"),
            "LONG_TAIL.RANKING.GAPLoss: statistic weighs the mean errors of classes",
        ),
    ],
)
def test_refused_where_it_is_built(overrides, message, tmp_path):
    cfg = small_config(tmp_path, "LongTailROIHeads", "SoftmaxCrossEntropyLoss", *overrides)
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


@pytest.mark.parametrize("pair", sorted(REFUSED), ids=lambda pair: "-".join(dict(pair).values()))
def test_refused_pairs(pair, tmp_path):
    choices = dict(pair)
    loss = choices.pop("loss")
    keys = itertools.chain(*(CHOICES[factor][choice] for factor, choice in choices.items()))
    with pytest.raises(ConfigError):
        build_model(small_config(tmp_path, "LongTailROIHeads", loss, *keys))


def test_mask_head_without_a_predictor_is_refused():
    cfg = load_config("configs/SynthLT/Base-smoke.yaml", list(CHOICES["mask"]["normed"]))
    with pytest.raises(ConfigError, match="MaskRCNNConvUpsampleHead has none: use Mask"):
        normalize_mask_predictor(nn.Sequential(nn.Conv2d(8, 1, 1)), cfg)


def test_static_ranking_counts_the_training_set(tmp_path, dataset):
    keys = (*CHOICES["ranking"]["static"], "LONG_TAIL.STATISTICS", "", *BITMASK)
    keys += ("DATASETS.TRAIN", f"('{dataset}',)")
    cfg = small_config(tmp_path, "LongTailROIHeads", "SoftmaxCrossEntropyLoss", *keys)
    count = build_model(cfg).roi_heads.box_predictor.ranking_loss.instance_count
    assert count.tolist() == [2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0]


def test_static_ranking_needs_statistics(tmp_path):
    keys = (*CHOICES["ranking"]["static"], "LONG_TAIL.STATISTICS", str(tmp_path / "none.json"))
    cfg = small_config(tmp_path, "LongTailROIHeads", "SoftmaxCrossEntropyLoss", *keys)
    with pytest.raises(UserError, match="none.json"):
        build_model(cfg)
    with pytest.raises(ConfigError, match="pass its statistics, or leave online on"):
        build_ranking_loss(cfg, None)
