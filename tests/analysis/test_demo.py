"""The demo, with hardly any training: what it prints, writes, reuses and says when it fails."""

import re
from pathlib import Path

import pytest
from PIL import Image

from lt_detectron2.analysis import demo, runs
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


def test_fresh_deletes_the_runs_and_nothing_else(tmp_path, monkeypatch):
    class Trained(Exception):
        pass

    def train(profile, runs):
        assert [run.folder.exists() for of in runs.values() for run in of] == [False, False]
        raise Trained

    files = ("softmax_seed0/a", "softmax_seed1/a", "mine/model_final.pth", "figures/mine.png")
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(demo, "train_all", train)
    with pytest.raises(Trained):
        demo.main(["--profile", "smoke", "--output", str(tmp_path), "--fresh"])
    assert [file for file in files if not (tmp_path / file).exists()] == ["softmax_seed0/a"]


@pytest.mark.parametrize(
    "visible, num_gpus, expected",
    [(None, 2, {"0", "1"}), ("3,GPU-8f,7", 2, {"3", "GPU-8f"}), ("", 0, {""}), (None, 0, {None})],
)
def test_runs_at_a_time_have_a_gpu_each(tmp_path, monkeypatch, visible, num_gpus, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.01)
    seen, active = [], set()

    class FakeTraining:
        returncode = 0

        def __init__(self, command, *, env, **_):
            self.gpu, self.folder = env.get("CUDA_VISIBLE_DEVICES"), command[-1]
            assert num_gpus == 0 or self.gpu not in active
            active.add(self.gpu)
            seen.append(self.gpu)

        def poll(self):
            active.discard(self.gpu)
            for name in ("model_final.pth", "inference/results.json"):
                path = Path(self.folder, name)
                path.parent.mkdir(exist_ok=True)
                path.touch()
            return 0

    monkeypatch.setattr("subprocess.Popen", FakeTraining)
    execute([Run(str(i), "any.yaml", tmp_path / str(i)) for i in range(4)], max_iterations=1)
    assert len(seen) == 4 and set(seen) == expected


def test_a_failing_training_shows_the_end_of_its_log(tmp_path):
    overrides = ["LONG_TAIL.LOSS.NAME", "NoSuchLoss"]
    run = Run("wrong", "configs/SynthLT/softmax_smoke.yaml", tmp_path / "wrong", overrides)
    with pytest.raises(RunFailed, match="error: .*LONG_TAIL.LOSS.NAME is 'NoSuchLoss'"):
        execute([run], max_iterations=20)
