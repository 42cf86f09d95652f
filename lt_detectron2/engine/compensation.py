"""Combinations that make up for the imbalance twice: allowed, but seldom meant."""

from __future__ import annotations

from detectron2.config import CfgNode

REPEATING = (
    "RepeatFactorTrainingSampler",
    "RepeatFactorSampler",
    "ClassAwareSampler",
    "InverseFrequencySampler",
    "ClassPowerSampler",
    "EpisodicSampler",
)
"""Samplers that show rare classes more often."""

BALANCING = ("ClassAwareSampler", "InverseFrequencySampler", "EpisodicSampler")
"""Those that show all classes equally often, so that nothing is left to make up for."""

PRIOR_LOSSES = (
    "BalancedSoftmaxLoss",
    "BalancedSigmoidLoss",
    "ReweightedSoftmaxLoss",
    "LDAMLoss",
    "EffectiveClassMarginLoss",
)
"""Losses that weigh or shift classes by the counts of the annotations, whatever is sampled."""

PLAIN_LOSSES = ("SoftmaxCrossEntropyLoss", "SigmoidCrossEntropyLoss", "FocalLoss", "FederatedLoss")
COUNTING_CALIBRATIONS = ("NorCal", "TauNorm")


def double_compensation(cfg: CfgNode) -> list[str]:
    """A sentence for each pair of parts of a config that do the same thing twice."""
    sampler, loss = cfg.DATALOADER.SAMPLER_TRAIN, cfg.LONG_TAIL.LOSS.NAME
    calibration = cfg.LONG_TAIL.CALIBRATION.NAME
    found = []
    if sampler in REPEATING and loss in PRIOR_LOSSES:
        found.append(
            f"{sampler} shows rare classes more often, and {loss} weighs them by how rare the "
            "annotations have them, as if it did not: rare classes may get too many detections. "
            "It can still help (docs/choosing.md): compare with either alone"
        )
    elif sampler in BALANCING and loss not in PLAIN_LOSSES:
        found.append(
            f"{sampler} shows all classes equally often, which leaves {loss} nothing to make up "
            "for: train the classifier with a plain loss, or use repeat factors instead"
        )
    if calibration in COUNTING_CALIBRATIONS:
        other = loss if loss not in PLAIN_LOSSES else sampler if sampler in REPEATING else ""
        if other:
            found.append(
                f"{calibration} raises rare classes by their counts at test time, and {other} has "
                "raised them in training: search its strength with tools/calibrate.py, or leave it"
            )
    return found
