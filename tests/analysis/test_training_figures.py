"""Figures at each evaluation of a training, in TensorBoard and nowhere else."""

import copy
import csv
import json
import os
import random
import signal
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import TrainerBase, hooks

from lt_detectron2.analysis import training_figures
from lt_detectron2.analysis.confusion import confusion_of_run
from lt_detectron2.analysis.predictions import num_right
from lt_detectron2.analysis.style import new_figure
from lt_detectron2.analysis.training_figures import FIGURES, EvaluatedTraining, log_figures
from lt_detectron2.engine.gradient_record import GradientRecord
from lt_detectron2.engine.stop import StopRequest
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.engine.writers import build_writers
from lt_detectron2.errors import DatasetError
from lt_detectron2.evaluation.coco import LongTailCOCOEvaluator
from lt_detectron2.evaluation.report import csv_text
from tests.engine.small_set import register, unregister
from tests.evaluation.evaluator_cases import model_outputs, run
from tests.modeling.detectors import NUM_CLASSES, STATISTICS, small_config, small_detector

DATASET = "training_figures_val"
ALL = {"weight_norms", "ap_by_count", "confusion", "predictions", "score_ranks"}


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory):
    register(DATASET, tmp_path_factory.mktemp("images"))
    yield
    unregister(DATASET)


@pytest.fixture
def trainer(tmp_path):
    """As much of one as is looked at; it evaluates after 3, 6 and 7 steps, the first time badly."""
    overrides = ("TEST.EVAL_PERIOD", "3", "LONG_TAIL.WRITERS", "['json', 'tensorboard']")
    overrides += ("DATASETS.TEST", f"('{DATASET}',)", "MODEL.MASK_ON", "False")
    cfg = small_config(tmp_path, "LongTailCascadeROIHeads", "SeesawLoss", *overrides)
    evaluations = []

    def evaluate():
        evaluations.append(1)
        if len(evaluations) == 2:
            LongTailTrainer.test(cfg, trainer.model)

    trainer = TrainerBase()
    trainer.cfg, trainer.statistics = cfg, STATISTICS
    trainer.model, trainer.run_step = small_detector(cfg), lambda: None
    trainer.evaluate, trainer.stop = evaluate, StopRequest()
    writing = hooks.PeriodicWriter(build_writers(cfg, 7), 20)
    trainer.register_hooks([hooks.EvalHook(3, evaluate), writing])
    return trainer


@pytest.fixture
def evaluated(trainer):
    LongTailTrainer.test(trainer.cfg, trainer.model)
    return EvaluatedTraining(trainer)


def images(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag.split("/")[1]: events.Images(tag) for tag in events.Tags()["images"]}


def test_every_evaluation_is_drawn(trainer, tmp_path, monkeypatch, caplog):
    parse, parsed = training_figures.parse_once, []
    monkeypatch.setattr(training_figures, "parse_once", lambda n: parsed.append(n) or parse(n))
    log_figures(trainer)
    trainer.train(0, 7)
    drawn = images(tmp_path)
    steps = {tag: [image.step for image in of_tag] for tag, of_tag in drawn.items()}
    # Counted from 0, as Detectron2 does; the first time there are no results.
    assert steps == {name: [5, 7] for name in ALL} | {"weight_norms": [2, 5, 7]}
    for of_tag in drawn.values():
        assert all(min(image.width, image.height) > 200 for image in of_tag)
    assert "could not be drawn" not in caplog.text
    assert parsed == [DATASET]  # images to show are looked for once


def test_nobody_takes_the_pictures(trainer):
    trainer.cfg.defrost()
    trainer.cfg.LONG_TAIL.WRITERS = ["json"]
    log_figures(trainer)
    assert len(trainer._hooks) == 2


def test_a_failure_costs_no_training_and_no_other_figure(trainer, tmp_path, monkeypatch, caplog):
    def fail(of):
        raise MemoryError

    monkeypatch.setitem(FIGURES, "confusion", fail)
    log_figures(trainer)
    trainer.train(0, 7)
    assert trainer.iter == 7 and set(images(tmp_path)) == ALL - {"confusion"}
    assert "The figure confusion could not be drawn" in caplog.text


def test_a_figure_of_gradients_that_fails_is_left_out(monkeypatch, caplog):
    """It is closed, and no figure of somebody else."""
    somebody_elses = new_figure(1, 1)[0]
    open_before = plt.get_fignums()

    def fail(runs):
        new_figure(1, 1)
        raise ValueError("nothing to draw")

    monkeypatch.setattr(training_figures, "ratio_figure", fail)
    monkeypatch.setattr(training_figures, "share_figure", lambda runs: new_figure(1, 1)[0])
    pictures = training_figures.draw_gradients(GradientRecord.empty(1, NUM_CLASSES), STATISTICS)
    assert set(pictures) == {"negative_share"}
    assert "The figure ratio could not be drawn" in caplog.text
    assert plt.get_fignums() == open_before
    plt.close(somebody_elses)


def test_a_model_that_fails_to_score_trains_on(trainer, evaluated, monkeypatch):
    def fail(record):
        raise DatasetError("image cannot be read")

    monkeypatch.setattr(training_figures, "annotated_image_mapper", lambda cfg: fail)
    trainer.model.train()
    with pytest.raises(DatasetError):
        FIGURES["score_ranks"](evaluated)
    assert trainer.model.training


def test_figures_do_not_delay_the_end(trainer, tmp_path, monkeypatch):
    """A request to stop ends the drawing; the training answers it after its next step."""

    def interrupted(of):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the drawing went on")

    monkeypatch.setitem(FIGURES, "confusion", interrupted)
    log_figures(trainer)
    with trainer.stop.listening():
        trainer.train(0, 7)
    assert trainer.iter == 7 and trainer.stop.agreed() == signal.SIGTERM
    steps = {tag: [image.step for image in of_tag] for tag, of_tag in images(tmp_path).items()}
    assert steps == {"weight_norms": [2]}  # the first time it comes to the confusion


def test_the_training_does_not_notice(trainer, evaluated):
    """Neither its random numbers, nor its weights and the state of its losses, nor its mode."""
    model = trainer.model.train()

    def random_numbers():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before, weights = random_numbers(), copy.deepcopy(model.state_dict())
    assert all(make(evaluated) for make in FIGURES.values())
    assert random_numbers() == before and all(module.training for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_confusion_is_that_of_the_program(evaluated, monkeypatch):
    counted = []
    monkeypatch.setattr(training_figures, "confusion_figure", lambda c, _: counted.append(c))
    FIGURES["confusion"](evaluated)
    expected = confusion_of_run(evaluated.cfg.OUTPUT_DIR)
    assert counted[0].counts.tolist() == expected.counts.tolist()
    assert counted[0].counts.sum() == len(evaluated.ground_truth.boxes) > 0


def test_perfect_detections_stand_beside_their_objects(trainer, monkeypatch):
    metadata, drawn = MetadataCatalog.get(DATASET), []
    dataset = json.loads(Path(metadata.json_file).read_text())
    found = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for annotation in dataset["annotations"]
    ]
    folder = f"{trainer.cfg.OUTPUT_DIR}/inference"
    evaluator = LongTailCOCOEvaluator(DATASET, ("bbox",), False, folder)
    run(evaluator, model_outputs(dataset, found))
    monkeypatch.setattr(training_figures, "panels_figure", lambda *panels: drawn.append(panels))
    FIGURES["predictions"](EvaluatedTraining(trainer))
    ((pictures, panels, titles, _),) = drawn
    assert titles == ["ground truth", "detections"] and len(pictures) == len(panels) == 4
    for objects, shown in panels:  # of two objects in one place, one is shown
        assert num_right(shown, objects) == len(shown.boxes) > 0


def test_rank_errors_are_those_of_the_model_now(evaluated, monkeypatch):
    drawn = []
    monkeypatch.setattr(training_figures, "errors_figure", lambda e, _: drawn.append(e))
    FIGURES["score_ranks"](evaluated)
    torch.rand(1)  # regions are sampled by other random numbers than the training's
    FIGURES["score_ranks"](evaluated)
    with torch.no_grad():
        for _, predictor in evaluated.model.roi_heads.box_stages:
            predictor.cls_score.weight.mul_(-1)
    FIGURES["score_ranks"](evaluated)
    first, again, other = drawn
    assert first.shape == (NUM_CLASSES,)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, equal_nan=True)


@pytest.mark.parametrize("column", ["train_images", "bbox_AP"])
def test_ap_by_count_needs_both(column, evaluated):
    path = Path(evaluated.cfg.OUTPUT_DIR, "inference", "per_category.csv")
    with path.open(newline="") as file:
        rows = [{**row, column: "n/a"} for row in csv.DictReader(file)]
    path.write_text(csv_text({name: [row[name] for row in rows] for name in rows[0]}))
    assert FIGURES["ap_by_count"](evaluated) is None
    assert FIGURES["confusion"](evaluated) is not None


def test_other_detectors_have_fewer_figures(trainer):
    trainer.model = trainer.model.backbone
    evaluated = EvaluatedTraining(trainer)
    assert [make(evaluated) for make in FIGURES.values()] == [None] * len(ALL)
