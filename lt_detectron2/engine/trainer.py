"""Training and evaluation of a config: DefaultTrainer, for any loss and any machine."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch.nn.parallel import DistributedDataParallel

from ..data.build import build_test_loader, build_train_loader
from ..data.loader import TrainingLoader
from ..data.statistics import (
    STATISTICS_KEY,
    prepare_statistics,
    training_statistics,
    write_statistics,
)
from ..errors import ConfigError
from ..evaluation.coco import LongTailCOCOEvaluator
from ..evaluation.inference import running_for
from ..evaluation.lvis import LongTailLVISEvaluator
from ..evaluation.open_images import LongTailOpenImagesEvaluator
from ..evaluation.options import EvaluationOptions
from ..modeling.components import build
from ..modeling.freeze import train_only
from ..random_state import keeping_random_state
from .blame import build_or_blame
from .checkpoint import LongTailCheckpointer, StatisticsRecord
from .class_means import prepare_calibration
from .feature_memory import fill_feature_memory
from .full_memory import explain_full_memory, is_want_of_memory
from .gradient_clipping import build_clipped_optimizer
from .gradient_recorder import build_gradient_recorder
from .hooks import complete_hooks
from .non_finite import (
    LastStep,
    NonFiniteValues,
    check_losses,
    check_weights_are_finite,
    diverged,
    explain_non_finite,
    explaining_proposals,
    proposals_as_values,
)
from .process_state import ProcessState, gather_process_states, restore_process_state
from .steps import build_step_trainer
from .stop import StopRequest, StopRequested
from .writers import build_writers

logger = logging.getLogger(__name__)

STATISTICS_FILE = "class_statistics.json"


class LongTailTrainer(DefaultTrainer):
    """
    What ``train_net.py`` runs.

    Beyond DefaultTrainer it counts the classes of the training set first, keeps the counts in
    every checkpoint, saves the optimizer's state (Detectron2 0.6 forgets it), and trains with
    several processes on CPUs too.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)  # DefaultTrainer's own constructor works on GPUs only
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.statistics = prepare_statistics(cfg)

        model = self.build_model(cfg)
        train_only(model, cfg.LONG_TAIL.TRAINABLE)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = _wrap_for_processes(model)
        self._last_step = LastStep(model)
        images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer, images)
        check_losses(self._trainer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = LongTailCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            reinit=cfg.LONG_TAIL.REINIT,
            allow_pickle=cfg.LONG_TAIL.ALLOW_PICKLE,
            needs_frozen=bool(cfg.LONG_TAIL.TRAINABLE),
            trainer=weakref.proxy(self),
            **{STATISTICS_KEY: StatisticsRecord(self.statistics)},
        )
        self.start_iter = 0
        self.stop = StopRequest()
        self._process_states: list[ProcessState] | None = None
        self._saved_iteration = -1
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        if comm.is_main_process():
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
            write_statistics(self.statistics, os.path.join(cfg.OUTPUT_DIR, STATISTICS_FILE))
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """
        As DefaultTrainer; a training that resumes goes on as if it had not been interrupted.

        It sees the images that it has not had yet, and each process draws the random numbers that
        it would have drawn.
        """
        super().resume_or_load(resume=resume)
        if not self.start_iter:
            fill_feature_memory(self.cfg, self._trainer.model)
        if self._process_states is not None:  # last, for all before may draw
            restore_process_state(self._model, self._process_states)
            self._process_states = None

    def train(self) -> Any:
        """
        As DefaultTrainer.

        Raises:
            StopRequested: the training was asked to stop, and has saved a checkpoint.
        """
        with self.stop.listening():
            return super().train()

    def save(self, name: str) -> None:
        """
        Save a checkpoint ``<name>.pth``. A collective.

        Raises:
            CheckpointError: it cannot be written; only in the main process.
            NonFiniteLossError: the weights are no numbers, and would take the place of some that
                are.
        """
        check_weights_are_finite(self._model, f"no checkpoint of iteration {self.iter}")
        self._save(name, gather_process_states(self._model))

    def _save(self, name: str, states: list[ProcessState]) -> None:
        self._process_states = states
        try:
            self.checkpointer.save(name, iteration=self.iter)
            self._saved_iteration = self.iter
        finally:
            self._process_states = None

    def evaluate(self) -> dict[str, Any]:
        """
        Evaluate the model as it is now on all of DATASETS.TEST.

        Raises:
            StopRequested: the training was asked to stop, which an evaluation does not delay.
        """
        with self.saving_before_stop(), self.stop.at_once():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    @contextmanager
    def saving_before_stop(self) -> Iterator[None]:
        """
        Around ``self.stop.at_once()``: a stop leaves a checkpoint of the last step. A collective.

        Raises:
            StopRequested: as came from inside.
        """
        states = gather_process_states(self._model)
        try:
            yield
        except StopRequested:
            # Not self.save: other processes may be somewhere else in what was ended.
            is_due = self.iter < self.max_iter and self.iter != self._saved_iteration
            if is_due and not diverged(self._model):
                self._save(f"model_{self.iter:07d}", states)
            raise

    def run_step(self) -> None:
        """
        As DefaultTrainer.

        Raises:
            NonFiniteLossError: a loss, or a proposal, is infinite or no number; the step is saved
                for replay.
            FullMemoryError: there is too little memory; the message says what needs less.
        """
        self._last_step.forget()
        try:
            with proposals_as_values():
                super().run_step()
        except NonFiniteValues as found:
            raise explain_non_finite(
                found.terms, self.iter, self._last_step, self.model, self.statistics, self.cfg
            ) from None
        except RuntimeError as error:
            # Of a batch that the model has got: not what a worker that loads the next one lacks.
            if not (self._last_step.batch and is_want_of_memory(error)):
                raise
            raise explain_full_memory(error, self.iter, self._last_step.batch, self.cfg) from error

    def build_hooks(self) -> list[HookBase | None]:
        # First, so that what it counts is in the checkpoint, and what it logs is written.
        recorder = build_gradient_recorder(self.cfg, self.model, self.statistics)
        return [recorder, *complete_hooks(self, super().build_hooks())]

    def build_writers(self) -> list[EventWriter]:
        return build_writers(self.cfg, self.max_iter)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        return build_or_blame("the model", super().build_model, cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_or_blame("the optimizer", partial(build_clipped_optimizer, model=model), cfg)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        build = partial(build_lr_scheduler, optimizer=optimizer)
        return build_or_blame("the schedule of learning rates", build, cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    @keeping_random_state()  # so that a training draws the same with and without evaluations
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """As DefaultTrainer.test, with the model made to return what our evaluators work with."""
        if cfg.DATASETS.TEST:
            check_weights_are_finite(model, "no evaluation")
            prepare_calibration(cfg, model)
        results = {}
        for index, name in enumerate(cfg.DATASETS.TEST):
            data_loader = cls.build_test_loader(cfg, name)  # may have to generate the set first
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            with running_for(evaluator, model), explaining_proposals(f"evaluation of {name}"):
                results[name] = inference_on_dataset(model, data_loader, evaluator)
            _print_results(name, results[name])
        return results if len(results) > 1 else next(iter(results.values()), {})

    @classmethod
    def test_predictions(cls, cfg: CfgNode) -> dict[str, Any]:
        """
        Evaluate the saved detections LONG_TAIL.EVAL.PREDICTIONS; no model is needed.

        Raises:
            ConfigError: there is more than one test set.
        """
        path = cfg.LONG_TAIL.EVAL.PREDICTIONS
        if len(cfg.DATASETS.TEST) != 1:
            raise ConfigError(
                "LONG_TAIL.EVAL.PREDICTIONS holds detections of one set, DATASETS.TEST names "
                f"{len(cfg.DATASETS.TEST)}: name the set that they were made for"
            )
        name = cfg.DATASETS.TEST[0]
        evaluator = cls.build_evaluator(_with_statistics_near(cfg, path), name)
        results = evaluator.evaluate_file(path)
        _print_results(name, results)
        return results

    @property
    def _model(self) -> torch.nn.Module:
        return getattr(self._trainer.model, "module", self._trainer.model)

    def state_dict(self) -> dict[str, Any]:
        state = TrainerBase.state_dict(self)
        state["_trainer"] = self._trainer.state_dict()
        if isinstance(self._trainer.data_loader, TrainingLoader):
            state["data_loader"] = self._trainer.data_loader.state_dict()
        if self._process_states is None and comm.get_world_size() == 1:
            state["processes"] = gather_process_states(self._model)
        else:
            state["processes"] = self._process_states
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])
        if isinstance(self._trainer.data_loader, TrainingLoader) and "data_loader" in state:
            self._trainer.data_loader.load_state_dict(state["data_loader"])
        self._process_states = state.get("processes")


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """
    The evaluator for a data set, by the ``evaluator_type`` of its metadata.

    Results go to ``OUTPUT_DIR/inference``, and to a folder for each set if there are several.

    Raises:
        ConfigError: the type is not known.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    evaluators = {
        "lvis": LongTailLVISEvaluator,
        "coco": LongTailCOCOEvaluator,
        "open_images": LongTailOpenImagesEvaluator,
    }
    if kind not in evaluators:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator_type {kind!r}, expected one of "
            f"{sorted(evaluators)}: set it in the metadata of the set"
        )
    # COCO's cap is per category and image, and always 100.
    caps = {"lvis": {"max_dets_per_image": cfg.TEST.DETECTIONS_PER_IMAGE}}
    return evaluators[kind](
        dataset_name,
        tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        output_dir=evaluation_folder(cfg, dataset_name),
        statistics=training_statistics(cfg, required=False),
        options=_evaluation_options(cfg),
        **caps.get(kind, {}),
    )


def evaluation_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Where the results of a test set go; no name leads out of OUTPUT_DIR."""
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    if len(cfg.DATASETS.TEST) > 1:
        folder = os.path.join(folder, dataset_name.replace(os.sep, "_"))
    return folder


def _evaluation_options(cfg: CfgNode) -> EvaluationOptions:
    node = cfg.LONG_TAIL.EVAL.clone()
    del node["PREDICTIONS"]
    return build("LONG_TAIL.EVAL", EvaluationOptions, node)


def _with_statistics_near(cfg: CfgNode, predictions: str) -> CfgNode:
    """The config, with the class counts of the run that made the predictions, if it has any."""
    saved = os.path.join(os.path.dirname(os.path.dirname(predictions)), STATISTICS_FILE)
    if cfg.LONG_TAIL.STATISTICS or not os.path.isfile(saved):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.LONG_TAIL.STATISTICS = saved
    cfg.freeze()
    return cfg


def _print_results(dataset_name: str, results: dict[str, Any]) -> None:
    if comm.is_main_process():
        logger.info("Evaluation results for %s in csv format:", dataset_name)
        print_csv_format(results)


def _wrap_for_processes(model: torch.nn.Module) -> torch.nn.Module:
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    # Losses sum their own state over processes; broadcasting it as well would be wrong for those
    # that keep it in float64 on each.
    return DistributedDataParallel(
        model, device_ids=[comm.get_local_rank()] if on_gpu else None, broadcast_buffers=False
    )
