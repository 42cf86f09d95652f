"""The comparison of second stages: what runs, in which order, from which weights, and the page."""

import json
import subprocess
from pathlib import Path

import pytest

from lt_detectron2.analysis import runs, second_stages, study
from lt_detectron2.analysis.runs import Run, RunFailed
from lt_detectron2.engine.setup import load_config


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Names of the runs that were done. Nothing is: each leaves its results and its checkpoint."""
    done = []

    def execute(waiting, max_iterations):
        for run in (run for run in waiting if not run.is_done):
            cfg = load_config(run.config, run.overrides)
            if cfg.MODEL.WEIGHTS:
                assert Path(cfg.MODEL.WEIGHTS).is_file(), run.name
            assert cfg.SOLVER.MAX_ITER == max_iterations
            run.results_file.parent.mkdir(parents=True)
            metrics = {"AP": 10.0 + cfg.SEED, "APr": 1.0, "APc": 5.0, "APf": 20.0}
            run.results_file.write_text(json.dumps({"results": {"bbox": metrics}}))
            (run.folder / runs.SECONDS_FILE).write_text("12.0\n")
            if not run.eval_only:
                (run.folder / "model_final.pth").touch()
            done.append(run.folder.name)

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(second_stages, "generate", lambda *args, **kwargs: None)
    monkeypatch.setattr(second_stages, "execute", execute)
    where = {"commit": "abc1234", "machine": "a machine", "torch": "2.0"}
    monkeypatch.setattr(study, "provenance", lambda: where)
    return done


def test_runs_what_is_missing_and_writes_the_page(tmp_path, executed):
    page = tmp_path / "page.md"
    arguments = ["--profile", "smoke", "--seeds", "3", "4", "--output", str(tmp_path / "runs")]
    arguments += ["--methods", "bags_tune_all", "norcal", "--page", str(page)]
    assert second_stages.main(arguments) == 0
    first = ["softmax_seed3", "softmax_seed4"]
    methods = [f"{m}_seed{s}" for s in (3, 4) for m in ("bags_train_classifier", "norcal")]
    assert executed == [*first, *methods, "bags_tune_all_seed3", "bags_tune_all_seed4"]
    text = page.read_text()
    for row in (
        "| softmax | everything | 2 | 13.5 ± 0.7 | 1.0 ± 0.0 | 5.0 ± 0.0 | 20.0 ± 0.0 | – | 12 |",
        "| BAGS, train classifier | classifier | 2 |",  # what it starts from was done, too
        "| BAGS, then tune all | all but stem, res2 | 2 |",
        "| NorCal | nothing | 2 |",
        "| NorCal | 4 | 14.0 | 1.0 | 5.0 | 20.0 | 12 |",
    ):
        assert row in text
    recipe = "configs/SynthLT/second_stage/norcal_demo.yaml"
    assert f"python train_net.py --eval-only --config-file {recipe}" in text
    assert "MODEL.WEIGHTS softmax_seed3/model_final.pth" in text
    assert "MODEL.WEIGHTS bags_train_classifier_seed3/model_final.pth" in text

    executed.clear()
    assert second_stages.main(arguments) == 0 and not executed


def test_what_starts_anew_is_measured_now(tmp_path, monkeypatch):
    run = study.make_runs("smoke", ["softmax"], [0], tmp_path)["softmax"][0]
    for commit in ("before", "now"):  # the first never got to a checkpoint
        monkeypatch.setattr(study, "provenance", lambda commit=commit: {"commit": commit})
        study.prepare_folder(run)
    (run.folder / "last_checkpoint").write_text("model_0000299.pth")
    monkeypatch.setattr(study, "provenance", lambda: {"commit": "later"})
    study.prepare_folder(run)
    assert study.provenance_of(run)["commit"] == "now"


def test_a_strength_is_searched_first(tmp_path, executed, monkeypatch):
    commands = []

    def search(command, **kwargs):
        commands.append(command)
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        (folder / "calibration").mkdir()
        base = Path(second_stages.recipe_file("norcal")).resolve()
        (folder / "calibration" / "NorCal.yaml").write_text(f"_BASE_: {base}\n")
        return subprocess.CompletedProcess(command, returncode=0)

    monkeypatch.setattr(subprocess, "run", search)
    page = tmp_path / "page.md"
    arguments = ["--profile", "smoke", "--seeds", "0", "--output", str(tmp_path / "runs")]
    arguments += ["--methods", "norcal_searched", "--page", str(page)]
    assert second_stages.main(arguments) == 0
    assert executed == ["softmax_seed0", "norcal_searched_seed0"]
    assert commands[0][1] == "tools/calibrate.py" and "NorCal" in commands[0]
    assert f"{tmp_path}/runs/softmax_seed0/model_final.pth" in commands[0]
    text = page.read_text()
    assert "python tools/calibrate.py --config-file configs/SynthLT/second_stage/norcal" in text
    assert "--config-file norcal_searched_seed0/calibration/NorCal.yaml" in text
    assert second_stages.main(arguments) == 0 and len(commands) == 1


def test_a_failed_search_is_reported(tmp_path, executed, monkeypatch, capsys):
    def fail(command, stdout, **kwargs):
        stdout.write(b"error: no class has a training image\n")
        return subprocess.CompletedProcess(command, returncode=1)

    monkeypatch.setattr(subprocess, "run", fail)
    arguments = ["--profile", "smoke", "--seeds", "0", "--output", str(tmp_path / "runs")]
    assert second_stages.main([*arguments, "--methods", "tau_norm_searched"]) == 1
    assert "error: no class has a training image" in capsys.readouterr().err


def test_a_failed_run_is_reported(monkeypatch, executed, tmp_path, capsys):
    def fail(waiting, max_iterations):
        raise RunFailed("softmax, seed 0 failed; the end of its log: ...")

    monkeypatch.setattr(second_stages, "execute", fail)
    assert second_stages.main(["--output", str(tmp_path)]) == 1
    assert "error: softmax, seed 0 failed" in capsys.readouterr().err


def test_every_method_has_its_config():
    for profile, classes in (("demo", 60), ("smoke", 16)):
        for method in second_stages.METHODS:
            run = second_stages.second_stage(method, profile, 0, Path("output"))
            cfg = load_config(second_stages.recipe_file(method), run.overrides)
            assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == classes
            assert cfg.DATASETS.TRAIN == (f"synthlt_{profile}_train",)
            assert cfg.SOLVER.MAX_ITER == {"demo": 300, "smoke": 100}[profile]


def test_an_evaluation_runs_without_training(tmp_path, monkeypatch):
    commands = []

    class Process:
        returncode = 0

        def __init__(self, command, **kwargs):
            commands.append(command)
            (tmp_path / "inference").mkdir(exist_ok=True)
            (tmp_path / "inference" / "results.json").write_text("{}")

        def poll(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    run = Run("calibration", "some.yaml", tmp_path, eval_only=True)
    assert not run.is_done
    runs.execute([run], 1)
    assert run.is_done and "--eval-only" in commands[0] and "--resume" not in commands[0]
    assert run.seconds() > 0
    run.add_seconds(100.0)  # a run that was stopped and went on
    assert run.seconds() > 100
    assert not Run("training", "some.yaml", tmp_path).is_done
