"""Our config keys. All lie under LONG_TAIL; no default of Detectron2 is changed."""

from __future__ import annotations

from detectron2.config import CfgNode

from .data import datasets  # noqa: F401  registers data sets, without touching the disk
from .data.build import sampler_classes
from .data.own import OwnData
from .evaluation.options import EvaluationOptions
from .layers import NormedConv2d
from .losses.harmonic import HarmonicCoupling
from .modeling.box_losses import BoxLoss
from .modeling.classification_loss import loss_classes
from .modeling.components import (
    calibrations,
    choice_node,
    classifiers,
    parameter_node,
    ranking_losses,
    switch_node,
)
from .modeling.loce import FeatureMemory
from .modeling.simcal import DualHead


def add_long_tail_config(cfg: CfgNode) -> None:
    """Add the keys of this library to a Detectron2 config, in place. May be called twice."""
    if "LONG_TAIL" in cfg:
        return
    cfg.LONG_TAIL = CfgNode()

    # Where class counts come from: "" counts DATASETS.TRAIN; otherwise a checkpoint of ours or a
    # class_statistics.json. Inference on another machine reads them from its checkpoint.
    cfg.LONG_TAIL.STATISTICS = ""

    # One's own annotation files, instead of DATASETS.TRAIN and DATASETS.TEST.
    cfg.LONG_TAIL.DATA = parameter_node(OwnData)

    # With RepeatFactorTrainingSampler or RepeatFactorSampler: "auto" chooses the threshold from the
    # data (100 images), "" leaves it to DATALOADER.REPEAT_THRESHOLD.
    cfg.LONG_TAIL.REPEAT_THRESHOLD = ""

    # Parameters of the samplers of this package, which DATALOADER.SAMPLER_TRAIN names.
    cfg.LONG_TAIL.SAMPLER = CfgNode(
        {name: parameter_node(sampler) for name, sampler in sampler_classes().items()}
    )

    # What is trained, for second stages: "classifier", "box_head", "box_and_mask_head",
    # "all_but_stem", or patterns of parameter names; empty trains everything.
    cfg.LONG_TAIL.TRAINABLE = []
    # What starts afresh although MODEL.WEIGHTS has it; the same names and patterns.
    cfg.LONG_TAIL.REINIT = []

    # A batch goes through the model in so many parts, one after the other, for one step of the
    # optimizer: the same training in less memory.
    cfg.LONG_TAIL.SOLVER = CfgNode()
    cfg.LONG_TAIL.SOLVER.MICRO_BATCHES = 1
    # With SOLVER.AMP.ENABLED: "float16", or "bfloat16", which also runs on CPUs.
    cfg.LONG_TAIL.SOLVER.AMP_DTYPE = "float16"

    # Read checkpoints and proposal files that are pickles of any Python object. Such a file can run
    # any program: only for files whose maker you trust.
    cfg.LONG_TAIL.ALLOW_PICKLE = False

    # At test time the stages of a cascade are averaged as "scores", Detectron2's way, or as
    # "logits", from which scores are made once.
    cfg.LONG_TAIL.CASCADE_AVERAGE = "scores"

    # At test time take the geometric mean of a region's scores and its proposal's, as CenterNet2
    # does with the federated loss.
    cfg.LONG_TAIL.PROPOSAL_SCORE = False

    # Every so many iterations, record in OUTPUT_DIR/gradients.npz which gradients the logits of
    # each class have received, for the figures gradient_ratio and negative_share; 0 does not.
    cfg.LONG_TAIL.GRADIENT_PERIOD = 0

    # What follows is derived from signatures: keyword-only arguments in upper case, with their
    # defaults. A node with NAME has a node for each of the names.

    # The classification loss.
    cfg.LONG_TAIL.LOSS = choice_node("SoftmaxCrossEntropyLoss", loss_classes())
    # What computes it: "torch", "triton" kernels, or "auto", Triton's on a GPU that can run them.
    # The kernels are tested without a GPU only, in Triton's interpreter, hence the default.
    cfg.LONG_TAIL.LOSS.IMPLEMENTATION = "torch"

    # A loss that ranks logits, added to the classification loss; "" is none.
    cfg.LONG_TAIL.RANKING = choice_node("", ranking_losses())

    # Coupling of classification and box loss, and the parameters of the box losses "hiou" and
    # "smooth_l1+hiou" of BBOX_REG_LOSS_TYPE.
    cfg.LONG_TAIL.HARMONIC = switch_node(HarmonicCoupling)
    cfg.LONG_TAIL.HIOU = parameter_node(BoxLoss)

    # The layer that makes class logits, and a normalised layer for mask logits.
    cfg.LONG_TAIL.CLASSIFIER = choice_node("Linear", classifiers())
    cfg.LONG_TAIL.MASK_NORM = switch_node(NormedConv2d)

    # What makes scores of a finished detector better at test time; "" is none.
    cfg.LONG_TAIL.CALIBRATION = choice_node("", calibrations())

    # The second head of MODEL.ROI_HEADS.NAME SimCalROIHeads.
    cfg.LONG_TAIL.SIMCAL = parameter_node(DualHead)

    # The features that MODEL.ROI_HEADS.NAME LOCEROIHeads keeps.
    cfg.LONG_TAIL.FEATURE_MEMORY = parameter_node(FeatureMemory)

    # What evaluation computes beside the standard metrics.
    cfg.LONG_TAIL.EVAL = parameter_node(EvaluationOptions)

    # Who is given the numbers of a training: "terminal", "json", "tensorboard", "csv", "wandb".
    cfg.LONG_TAIL.WRITERS = ["terminal", "json", "tensorboard"]
    # Every so many iterations, the loss on DATASETS.TEST is measured; 0 is never.
    cfg.LONG_TAIL.VALIDATION_LOSS_PERIOD = 0
    # The metric whose best evaluation is kept as model_best.pth, such as "bbox/AP" or "bbox/APr".
    cfg.LONG_TAIL.BEST_CHECKPOINT = ""
    # Whether a training or evaluation leaves report.md and report.html in OUTPUT_DIR.
    cfg.LONG_TAIL.REPORT = True

    # With --eval-only: evaluate these saved detections (detections.npz of an evaluation, or a JSON
    # file of results) instead of running the model.
    cfg.LONG_TAIL.EVAL.PREDICTIONS = ""
