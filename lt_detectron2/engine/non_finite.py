"""
A loss that becomes infinite or no number: which term, at which images, and a file to replay it.

Detectron2 waits for the values of the losses in each step to log them. They are looked at there,
and nothing is added to a step but a reference to its batch and the state of the random numbers.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..errors import NonFiniteLossError
from ..files import replacing
from ..losses.distributed import without_others
from ..random_state import keeping_random_state
from ..statistics import ClassStatistics
from .steps import PRECISIONS

FOLDER = "non_finite"
LISTED = 10
PROPOSALS = "proposals"
"""Named like a loss term: Detectron2 raises before there is any loss."""

REFUSALS = "Predicted boxes or scores contain Inf/NaN", "Box tensor contains infinite or NaN"
"""What the RPN says, and the second stage of a cascade of the boxes of the first."""

DIVERGED = (
    "the training has diverged; start it again with a lower SOLVER.BASE_LR, a longer warm-up or "
    "clipped gradients (--resume would keep the learning rate)."
)


class NonFiniteValues(Exception):
    """A step that must not be taken: the values of its loss terms, by name."""

    def __init__(self, terms: dict[str, float]):
        super().__init__(terms)
        self.terms = terms


def check_losses(step: SimpleTrainer) -> None:
    """Let the steps raise NonFiniteValues before anything is logged or learnt."""
    write_metrics = step._write_metrics

    def checked(loss_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
        # What Detectron2 would do next; it finds values that it need not wait for.
        terms = {name: float(value.detach()) for name, value in loss_dict.items()}
        if not all(map(math.isfinite, terms.values())):
            raise NonFiniteValues(terms)
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in terms.items()}
        write_metrics(values, *args, **kwargs)

    step._write_metrics = checked


@contextlib.contextmanager
def proposals_as_values() -> Iterator[None]:
    """Inside, proposals that Detectron2 cannot go on with raise NonFiniteValues, as losses do."""
    try:
        yield
    except (FloatingPointError, AssertionError) as error:
        if not str(error).startswith(REFUSALS):
            raise
        raise NonFiniteValues({PROPOSALS: math.nan}) from error


@contextlib.contextmanager
def explaining_proposals(purpose: str) -> Iterator[None]:
    """
    Inside, where no step is taken that could be saved, the same is an error with a remedy.

    Raises:
        NonFiniteLossError: it happened; the message begins with what the proposals were for.
    """
    try:
        with proposals_as_values():
            yield
    except NonFiniteValues:
        raise NonFiniteLossError(
            f"{purpose}: boxes are infinite or no numbers: {DIVERGED}"
        ) from None


def not_finite(parameters: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of those with values that are infinite or no numbers; waits for them once."""
    named = dict(parameters)
    if not named:
        return []
    device = next(iter(named.values())).device
    finite = torch.stack([value.isfinite().all().to(device) for value in named.values()])
    return [name for name, is_finite in zip(named, finite.tolist()) if not is_finite]


def diverged(model: nn.Module) -> list[str]:
    """Names of trained parameters with values that are infinite or no numbers."""
    return not_finite((n, p) for n, p in model.named_parameters() if p.requires_grad)


def check_weights_are_finite(model: nn.Module, purpose: str) -> None:
    """
    Before something that only finite weights are of use for.

    Raises:
        NonFiniteLossError: they are not; the message begins with what they were needed for.
    """
    broken = diverged(model)
    if broken:
        raise NonFiniteLossError(
            f"{purpose}: {len(broken)} parameters have values that are infinite or no numbers "
            f"({broken[0]}): {DIVERGED}"
        )


class LastStep:
    """
    Remembers what the newest training step of a model was given.

    Attributes:
        batch: images, as the model got them, of all micro-batches.
        random: states of torch's generators before the first.
    """

    def __init__(self, model: nn.Module):
        self.forget()
        model.register_forward_pre_hook(self._remember)

    def forget(self) -> None:
        """A step begins."""
        self.batch: list[dict[str, Any]] = []
        self.random: dict[str, Tensor] = {}

    def _remember(self, model: nn.Module, inputs: tuple) -> None:
        if not (model.training and torch.is_grad_enabled() and inputs):
            return
        self.batch += inputs[0]
        if not self.random:
            self.random = {"cpu": torch.get_rng_state()}
            if torch.cuda.is_available():
                self.random["cuda"] = torch.cuda.get_rng_state()


def explain_non_finite(
    terms: Mapping[str, float],
    iteration: int,
    step: LastStep,
    model: nn.Module,
    statistics: ClassStatistics,
    cfg: CfgNode,
) -> NonFiniteLossError:
    """
    Save a step for replay and say what is known about it.

    Args:
        terms: values of the loss terms.
        iteration: of the step.
        step: what it was given.
        model: before its weights were changed.
        statistics: of the training set, for the names of classes.
        cfg: of the training.

    Returns:
        an error that names the iteration, the terms, the images and their classes, the file, and
        what to try.
    """
    model = getattr(model, "module", model)
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    losses = losses_by_image(model, step.batch, step.random, precision_of(cfg))
    is_cause = [not all(map(math.isfinite, of_image.values())) for of_image in losses]
    names = statistics.class_names or [str(c) for c in range(statistics.num_classes)]
    images = [
        {
            "image_id": image.get("image_id"),
            "file_name": image.get("file_name"),
            "classes": _class_names(image, names),
            "losses": of_image,
            "is_cause": cause,
        }
        for image, of_image, cause in zip(step.batch, losses, is_cause)
    ]
    content = {
        "iteration": iteration,
        "terms": dict(terms),
        "images": images,
        "batch": [encode(image) for image in step.batch],
        "random": step.random,
        "config": cfg.dump(),
        "model": state,
        "class_statistics": statistics.state_dict(),
    }
    rank = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
    path = os.path.join(cfg.OUTPUT_DIR, FOLDER, f"iteration_{iteration:07d}{rank}.pth")
    return NonFiniteLossError(
        f"{_what(terms)} at iteration {iteration}; {_where(images)}. {_remedy(broken, is_cause)} "
        + _save(content, path)
    )


def losses_by_image(
    model: nn.Module,
    batch: Sequence[dict[str, Any]],
    random: Mapping[str, Tensor],
    precision: torch.dtype | None = None,
) -> list[dict[str, float]]:
    """The loss terms of each image of a batch by itself; no state of a loss is changed."""
    if any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) and comm.get_world_size() > 1:
        return [{} for _ in batch]  # the other processes would have to take part
    return [run_step(model, [image], random, precision) for image in batch]


def run_step(
    model: nn.Module,
    batch: list[dict[str, Any]],
    random: Mapping[str, Tensor],
    precision: torch.dtype | None = None,
) -> dict[str, float]:
    """The loss terms of a batch, drawn as in its training, without a gradient."""
    with (
        torch.no_grad(),
        EventStorage(0),
        without_others(),
        _random_numbers(random),
        torch.autocast(_device(model).type, dtype=precision, enabled=precision is not None),
    ):
        try:
            with proposals_as_values():
                return {name: float(value) for name, value in model(batch).items()}
        except NonFiniteValues as found:
            return found.terms


def precision_of(cfg: CfgNode) -> torch.dtype | None:
    """The type of autocast that a training uses, None for none."""
    return PRECISIONS[cfg.LONG_TAIL.SOLVER.AMP_DTYPE] if cfg.SOLVER.AMP.ENABLED else None


def encode(item: Any) -> Any:
    """An input of a model as tensors, numbers, texts, lists and dicts: no pickle is needed."""
    if isinstance(item, dict):
        return {key: encode(value) for key, value in item.items() if _is_kept(value)}
    if isinstance(item, Instances):
        fields = {name: encode(v) for name, v in item.get_fields().items() if _is_kept(v)}
        return {"kind": "Instances", "image_size": list(item.image_size), "fields": fields}
    if isinstance(item, PolygonMasks):
        polygons = [[torch.as_tensor(p) for p in mask] for mask in item.polygons]
        return {"kind": "PolygonMasks", "polygons": polygons}
    if isinstance(item, Boxes | BitMasks):
        return {"kind": type(item).__name__, "tensor": item.tensor.cpu()}
    return item.cpu() if isinstance(item, Tensor) else item


def decode(item: Any) -> Any:
    """The inverse of :func:`encode`."""
    if not isinstance(item, dict):
        return item
    kind = item.get("kind")
    if kind == "Instances":
        fields = {name: decode(value) for name, value in item["fields"].items()}
        return Instances(tuple(item["image_size"]), **fields)
    if kind == "PolygonMasks":
        return PolygonMasks([[p.numpy() for p in mask] for mask in item["polygons"]])
    if kind in ("Boxes", "BitMasks"):
        return {"Boxes": Boxes, "BitMasks": BitMasks}[kind](item["tensor"])
    return {key: decode(value) for key, value in item.items()}


def _is_kept(value: Any) -> bool:
    plain = (Tensor, Instances, Boxes, BitMasks, PolygonMasks, dict, str, int, float, type(None))
    return isinstance(value, plain)


def _class_names(image: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    instances = image.get("instances")
    if instances is None or not instances.has("gt_classes"):
        return []
    return [names[c] for c in sorted(set(instances.gt_classes.tolist()))]


def _what(terms: Mapping[str, float]) -> str:
    bad = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
    good = [f"{name} {value:.4g}" for name, value in terms.items() if math.isfinite(value)]
    return " and ".join(bad) + (f" ({', '.join(good)})" if good else "")


def _where(images: Sequence[Mapping[str, Any]]) -> str:
    causes = [image for image in images if image["is_cause"]]
    if not causes:
        causes, told = images, "no image alone gives it, the batch is"
    else:
        told = "each of these images alone gives it:"
    listed = [
        f"{image['image_id']!r} with {', '.join(image['classes'][:LISTED]) or 'no object'}"
        for image in causes[:LISTED]
    ]
    more = [f"{len(causes) - LISTED} more"] if len(causes) > LISTED else []
    return f"{told} image {'; image '.join(listed + more)}"


def _remedy(broken: Sequence[str], is_cause: Sequence[bool]) -> str:
    if broken:
        return (
            f"{len(broken)} parameters or buffers were not finite before ({broken[0]}): {DIVERGED}"
        )
    if len(is_cause) > 1 and all(is_cause):
        return f"The weights are finite, and every image gives it: perhaps {DIVERGED}"
    return "The weights are finite: look at these images and their annotations."


def _save(content: Mapping[str, Any], path: str) -> str:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with replacing(path, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch says so when the disk is full
        return f"The step could not be saved: {error}"
    return f"The step is saved; replay it with: lt-detectron2 replay {path}"


@contextlib.contextmanager
def _random_numbers(state: Mapping[str, Tensor]) -> Iterator[None]:
    with keeping_random_state():
        if "cpu" in state:
            torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
        yield


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
