"""Detectron2's own classes score like ours after folding; what cannot be folded is refused."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import nn

from lt_detectron2.calibration import NorCal, RegionOutputs, TauNorm
from lt_detectron2.errors import ExportError
from lt_detectron2.export import plain
from lt_detectron2.export.comparison import compare
from lt_detectron2.export.plain import fold, plain_detector
from lt_detectron2.export.traceable import TraceableDetector
from lt_detectron2.layers import CausalClassifier, CosineLinear, LearnableWeightScaling
from lt_detectron2.losses import (
    EqualizationLossV2,
    FBSAEGLoss,
    FocalLoss,
    LDAMLoss,
    SeesawLoss,
    SoftmaxCrossEntropyLoss,
)
from lt_detectron2.modeling.classification_loss import loss_classes, needs_statistics
from tests.export.detectors import config_and_detector, images
from tests.modeling.detectors import NUM_CLASSES as K
from tests.modeling.detectors import STATISTICS

FEATURES = 16
SIGMOID = {
    *("AdaptiveClassSuppressionLoss", "BalancedSigmoidLoss", "DropLoss", "EqualizationLoss"),
    *("EqualizedFocalLoss", "FBSAEGLoss", "FederatedLoss", "FocalLoss", "SigmoidCrossEntropyLoss"),
}
SOFTMAX = {
    *("BalancedSoftmaxLoss", "EquilibriumLoss", "LDAMLoss", "ReweightedSoftmaxLoss"),
    *("SoftmaxCrossEntropyLoss", "SoftmaxEqualizationLoss", "SoftmaxEqualizationLossV2"),
}
REFUSED = {
    "EffectiveClassMarginLoss": r"by 1 - P\(background\)",
    "EqualizationLossV2": r"by 1 - P\(background\)",
    "GroupSoftmaxLoss": "groups",
    "GumbelLoss": r"exp\(-exp",
    "SeesawLoss": "object and background",
}


def make(loss_class, **parameters):
    wired = (K, STATISTICS) if needs_statistics(loss_class) else (K,)
    return loss_class(*wired, **parameters).eval()


def linear(layer=nn.Linear, outputs=K + 1, **parameters):
    layer = layer(FEATURES, outputs, **parameters)
    for values in layer.parameters():
        nn.init.normal_(values)
    return layer


def scores(classifier, loss, calibration, features):
    outputs = RegionOutputs(classifier(features), loss.scores, features, classifier)
    return outputs.scores if calibration is None else calibration(outputs)


def stock_scores(head, features):
    """What Detectron2's box predictor makes of a region, with the weights of the folded head."""
    layers = FastRCNNOutputLayers(
        ShapeSpec(channels=FEATURES),
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=K,
    )
    layers.cls_score.load_state_dict(head.classifier.state_dict())
    regions = Instances((10, 10), proposal_boxes=Boxes(torch.zeros(len(features), 4)))
    return layers.predict_probs(layers(features), [regions])[0]


@torch.no_grad()
def assert_folds(classifier, loss, calibration=None):
    head = fold(classifier, loss, calibration)
    features = torch.randn(50, FEATURES)
    expected = scores(classifier, loss, calibration, features)
    assert type(head.classifier) is nn.Linear
    if head.uses_sigmoid:
        found = head.classifier(features).sigmoid()
        assert found.shape == expected.shape
        torch.testing.assert_close(found[:, :-1], expected[:, :-1], atol=1e-6, rtol=1e-5)
        assert found[:, -1].max() < 1e-40 or loss.num_logits == K + 1
    else:
        found = stock_scores(head, features)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    return head


@pytest.mark.parametrize("name", sorted(loss_classes()))
def test_every_loss(name):
    loss = make(loss_classes()[name])
    classifier = linear(outputs=loss.num_logits)
    if name in REFUSED:
        with pytest.raises(ExportError, match=REFUSED[name]) as raised:
            fold(classifier, loss)
        assert "torchscript or onnx" in str(raised.value)
        return
    assert name in SIGMOID | SOFTMAX
    assert assert_folds(classifier, loss).uses_sigmoid == (name in SIGMOID)


@pytest.mark.parametrize(
    "loss",
    [
        make(SeesawLoss, objectness=False),
        make(EqualizationLossV2, objectness=False),
        make(FocalLoss, background_column=True),
        make(LDAMLoss, scale=7.0),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_switches_that_make_it_possible(loss):
    assert_folds(linear(outputs=loss.num_logits), loss)


def test_switch_that_makes_it_impossible():
    with pytest.raises(ExportError, match=r"exp\(-exp"):
        fold(linear(outputs=K), make(FBSAEGLoss, activation="gumbel"))


@pytest.mark.parametrize("scale_bias", [False, True])
def test_weight_scaling(scale_bias):
    assert_folds(
        linear(LearnableWeightScaling, scale_bias=scale_bias), make(SoftmaxCrossEntropyLoss)
    )


@pytest.mark.parametrize("layer", [CosineLinear, CausalClassifier])
def test_normalised_classifiers(layer):
    with pytest.raises(ExportError, match=f"a {layer.__name__} divides the features"):
        fold(linear(layer), make(SoftmaxCrossEntropyLoss))


@pytest.mark.parametrize(
    "calibration",
    [
        TauNorm(K, None, tau=0.7, background="none"),
        TauNorm(K, None, tau=1.0, background="drop_bias"),
        NorCal(K, STATISTICS, gamma=0.6),
        NorCal(K, STATISTICS, gamma=0.9, factor="effective_number", counts="instances"),
        NorCal(K, STATISTICS, gamma=0.3, divide="logits"),
    ],
    ids=repr,
)
def test_calibrations(calibration):
    assert_folds(linear(), make(SoftmaxCrossEntropyLoss), calibration)


def test_calibration_after_a_scaled_softmax():
    assert_folds(linear(), make(LDAMLoss, scale=3.0), NorCal(K, STATISTICS))


@pytest.mark.parametrize(
    "loss, calibration, reason",
    [
        ("SoftmaxCrossEntropyLoss", TauNorm(K, STATISTICS), "'official_selection' combines"),
        ("SoftmaxCrossEntropyLoss", NorCal(K, STATISTICS, normalize=False), "do not sum to 1"),
        ("SigmoidCrossEntropyLoss", NorCal(K, STATISTICS, normalize=False), "after sigmoids"),
    ],
)
def test_calibrations_that_cannot_be_folded(loss, calibration, reason):
    loss = make(loss_classes()[loss])
    with pytest.raises(ExportError, match=reason):
        fold(linear(outputs=loss.num_logits), loss, calibration)


# ---- whole detectors

SOFTMAX_LOSS = "SoftmaxCrossEntropyLoss"
TAU_NORM = ["LONG_TAIL.CALIBRATION.NAME", "TauNorm", "LONG_TAIL.CALIBRATION.TauNorm.BACKGROUND"]


@pytest.mark.parametrize(
    "heads, overrides",
    [
        ("LongTailROIHeads", [*TAU_NORM, "none"]),
        ("LongTailCascadeROIHeads", ["LONG_TAIL.CLASSIFIER.NAME", "LearnableWeightScaling"]),
        ("LongTailROIHeads", ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "hiou"]),
    ],
)
def test_detections(tmp_path, heads, overrides):
    cfg, model = config_and_detector(tmp_path, *overrides, heads=heads, loss=SOFTMAX_LOSS)
    for name, values in model.named_parameters():
        if name.endswith("cls_score.scale"):
            nn.init.uniform_(values, 0.5, 2.0)
    plain_cfg, plain_model = plain_detector(cfg, model)
    assert isinstance(plain_model.roi_heads, StandardROIHeads)
    assert "lt_detectron2" not in type(plain_model.roi_heads).__module__
    assert "LONG_TAIL" not in plain_cfg
    differences = compare(
        TraceableDetector(model), TraceableDetector(plain_model), images(), tolerance=1e-5
    )
    assert all(image.detections == image.exported > 0 for image in differences)


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (["LONG_TAIL.PROPOSAL_SCORE", "True"], "PROPOSAL_SCORE"),
        (["LONG_TAIL.MASK_NORM.ENABLED", "True"], "MASK_NORM"),
        ([*TAU_NORM, "official_selection"], "with 'none' or 'drop_bias'"),
        (["MODEL.ROI_HEADS.NAME", "SimCalROIHeads"], "no counterpart"),
    ],
)
def test_detectors_that_cannot_be_plain(tmp_path, overrides, reason):
    cfg, model = config_and_detector(tmp_path, *overrides, loss=SOFTMAX_LOSS)
    with pytest.raises(ExportError, match=reason):
        plain_detector(cfg, model)


def test_cascade_that_averages_logits(tmp_path):
    cfg, model = config_and_detector(
        tmp_path,
        "LONG_TAIL.CASCADE_AVERAGE",
        "logits",
        heads="LongTailCascadeROIHeads",
        loss=SOFTMAX_LOSS,
    )
    with pytest.raises(ExportError, match="averages stages"):
        plain_detector(cfg, model)


def test_sigmoids_need_a_newer_detectron2(tmp_path):
    cfg, model = config_and_detector(tmp_path, loss="EqualizationLoss")
    if "USE_SIGMOID_CE" in cfg.MODEL.ROI_BOX_HEAD:
        plain_cfg, plain_model = plain_detector(cfg, model)
        assert plain_cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE
        compare(TraceableDetector(model), TraceableDetector(plain_model), images())
    else:
        with pytest.raises(ExportError, match="main branch has MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"):
            plain_detector(cfg, model)


def test_detector_of_detectron2(tmp_path):
    cfg, model = config_and_detector(tmp_path, loss=SOFTMAX_LOSS)
    with pytest.raises(ExportError, match="nothing is to be folded"):
        plain._fold_predictor(FastRCNNOutputLayers(cfg, model.roi_heads.box_head.output_shape), "")
