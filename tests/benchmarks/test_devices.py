"""Tensors lie where the machine of the results says: on the GPU, if there is one."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import harness, inference, losses, masks, ranking
from benchmarks.harness import Contest

ELSEWHERE = "meta"
"""A device that every machine has, and that holds no values."""
CASES = {
    "inference": (lambda: inference.set_up("detections", "trained"), ()),
    "losses": (lambda: losses.set_up("SeesawLoss", 30, 9, compiled=False), ()),
    "masks": (lambda: masks.set_up(3), ("encode_roi_masks",)),
    "ranking": (lambda: ranking.set_up(30, 9, 6, "trained"), ("GAPLoss",)),
}
"""Small cases, and their contestants that have code for the CPU alone."""


@pytest.mark.parametrize("set_up, for_cpus", CASES.values(), ids=CASES.keys())
def test_contestants_stay_on_the_device(set_up: Callable[[], Contest], for_cpus: tuple[str, ...]):
    """Tried the other way round: their inputs are on the CPU, and the default is elsewhere."""
    contestants = set_up().contestants
    with torch.device(ELSEWHERE):
        for name in contestants.keys() - set(for_cpus):
            contestants[name]()


@pytest.mark.parametrize("benchmark", [inference, losses, masks, ranking])
def test_benchmarks_share_a_device(benchmark):
    assert benchmark.DEVICE == harness.DEVICE


def test_ranking_starts_on_the_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "DEVICE", ELSEWHERE)
    contestants = ranking.set_up(30, 9, 6, "trained").contestants
    assert contestants["cross_entropy"]().device.type == ELSEWHERE


@pytest.mark.parametrize(
    "contestant, function",
    [("encode_roi_masks", "encode_roi_masks"), ("detectron2", "paste_masks_in_image")],
)
def test_masks_start_on_the_device(contestant: str, function: str, monkeypatch: pytest.MonkeyPatch):
    class Seen(Exception):
        pass

    def look(*arguments: object) -> None:
        raise Seen({t.device.type for t in arguments if isinstance(t, torch.Tensor)})

    monkeypatch.setattr(masks, "DEVICE", ELSEWHERE)
    monkeypatch.setattr(masks, function, look)
    contestants = masks.set_up(3).contestants
    with pytest.raises(Seen, match=f"{{'{ELSEWHERE}'}}"):
        contestants[contestant]()
