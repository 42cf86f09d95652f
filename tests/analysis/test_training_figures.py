"""Figures at each evaluation of a training, in TensorBoard and nowhere else."""

import pytest
from detectron2.engine import TrainerBase, hooks

from lt_detectron2.analysis import training_figures
from lt_detectron2.analysis.training_figures import figures_of_evaluation, log_figures
from lt_detectron2.engine.writers import build_writers
from tests.modeling.detectors import STATISTICS, small_config, small_detector

from .test_class_figures import write_results

WEIGHTS, AP = "evaluation/weight_norms", "evaluation/ap_by_count"


@pytest.fixture
def trainer(tmp_path):
    """As much of one as is looked at; it evaluates after 3, 6 and 7 steps, the first time badly."""
    writers = "['json', 'tensorboard']"
    overrides = ("TEST.EVAL_PERIOD", "3", "LONG_TAIL.WRITERS", writers)
    cfg = small_config(tmp_path, "LongTailROIHeads", "SeesawLoss", *overrides)
    evaluations = []

    def evaluate():
        evaluations.append(1)
        if len(evaluations) == 2:
            write_results(tmp_path, "1,cat,f,900,2,3,4,50.5", "4,emu,r,3,3,1,1,n/a")

    trainer = TrainerBase()
    trainer.cfg, trainer.statistics = cfg, STATISTICS
    trainer.model, trainer.run_step = small_detector(cfg), lambda: None
    writing = hooks.PeriodicWriter(build_writers(cfg, 7), 20)
    trainer.register_hooks([hooks.EvalHook(3, evaluate), writing])
    return trainer


def images(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: events.Images(tag) for tag in events.Tags()["images"]}


def test_every_evaluation_is_drawn(trainer, tmp_path):
    log_figures(trainer)
    trainer.train(0, 7)
    drawn = images(tmp_path)
    steps = {tag: [image.step for image in of_tag] for tag, of_tag in drawn.items()}
    assert steps == {WEIGHTS: [2, 5, 7], AP: [5, 7]}  # counted from 0, as Detectron2 does
    assert all(min(image.width, image.height) > 200 for image in drawn[WEIGHTS] + drawn[AP])


def test_nobody_takes_the_pictures(trainer):
    trainer.cfg.defrost()
    trainer.cfg.LONG_TAIL.WRITERS = ["json"]
    log_figures(trainer)
    assert len(trainer._hooks) == 2


def test_a_failure_costs_no_training(trainer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training_figures, "to_pixels", None)
    log_figures(trainer)
    trainer.train(0, 7)
    assert trainer.iter == 7 and not images(tmp_path)
    assert "could not be drawn" in caplog.text


def test_other_detectors_have_no_norms(trainer):
    trainer.model = trainer.model.backbone
    assert figures_of_evaluation(trainer) == {}
