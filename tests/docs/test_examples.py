"""The examples of the documentation run, and show what they claim."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run_example(name: str) -> str:
    command = [sys.executable, str(REPOSITORY / "docs" / "examples" / name)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tail_by_loss(printed: str) -> dict[str, float]:
    return {m[1]: float(m[2]) for m in re.finditer(r"(\w+Loss) .* tail ([\d.]+)", printed)}


def test_imbalanced_classification():
    tail = tail_by_loss(run_example("imbalanced_classification.py"))
    assert tail["BalancedSoftmaxLoss"] > tail["SoftmaxCrossEntropyLoss"] + 0.2
    assert tail["SeesawLoss"] > tail["SoftmaxCrossEntropyLoss"] + 0.1


def test_dense_head():
    tail = tail_by_loss(run_example("dense_head.py"))
    assert tail["BalancedSoftmaxLoss"] > tail["SoftmaxCrossEntropyLoss"] + 0.2
    assert tail["SeesawLoss"] > tail["SoftmaxCrossEntropyLoss"] + 0.2


def test_torchvision_detector():
    printed = run_example("torchvision_detector.py")
    first, last = (float(m[1]) for m in re.finditer(r"loss_classifier ([\d.]+)", printed))
    assert last < 0.7 * first
    assert int(re.search(r"(\d+) detections", printed)[1]) > 0


def test_lazy_config():
    printed = run_example("lazy_config.py")
    losses = [float(m[1]) for m in re.finditer(r"loss_cls ([\d.]+)", printed)]
    assert min(losses[1:]) < 0.8 * losses[0]
    assert int(re.search(r"(\d+) detections by LongTail", printed)[1]) > 0
