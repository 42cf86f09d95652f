"""The demo, with hardly any training: what it prints, writes, reuses and says when it fails."""

import re

import pytest
from PIL import Image

from lt_detectron2.analysis import demo
from lt_detectron2.analysis.runs import Run, RunFailed, execute

SHORT = ["SOLVER.MAX_ITER", "20", "SOLVER.WARMUP_ITERS", "5", "MODEL.MASK_ON", "False"]
SHORT += ["LONG_TAIL.REPORT", "False"]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def run_demo(output, monkeypatch, capsys):
    def run(*overrides):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(output / "datasets"))
        folder = output / "output"
        status = demo.main(["--profile", "smoke", "--output", str(folder), *SHORT, *overrides])
        return status, folder, capsys.readouterr()

    return run


def test_trains_compares_and_reports(run_demo):
    status, folder, printed = run_demo()
    assert status == 0, printed.err
    assert "| softmax | 1 |" in printed.out and "| EQL v2 | 1 |" in printed.out
    report = (folder / "report.md").read_text()
    assert re.search(r"\| EQL v2 +\| +1 \|", report)
    assert (folder / "report.html").is_file()
    for name in ("classes", "ap_by_count", "predictions"):
        assert f"figures/{name}.png" in report
        assert min(Image.open(folder / "figures" / f"{name}.png").size) > 200

    # Again: nothing is trained, the same report comes out.
    checkpoint = folder / "eqlv2_seed0" / "model_final.pth"
    trained_at = checkpoint.stat().st_mtime
    status, folder, printed = run_demo()
    assert status == 0 and "Already trained: softmax, seed 0, EQL v2, seed 0" in printed.out
    assert checkpoint.stat().st_mtime == trained_at
    assert (folder / "report.md").read_text() == report


def test_a_failing_training_shows_the_end_of_its_log(tmp_path):
    overrides = ["LONG_TAIL.LOSS.NAME", "NoSuchLoss"]
    run = Run("wrong", "configs/SynthLT/softmax_smoke.yaml", tmp_path / "wrong", overrides)
    with pytest.raises(RunFailed, match="error: .*LONG_TAIL.LOSS.NAME is 'NoSuchLoss'"):
        execute([run], max_iterations=20)
