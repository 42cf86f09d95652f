"""
What every exported loss promises (lt_detectron2/losses/base.py); new exports are tested unasked.

Gradients, states and values are compared in float64 unless a test is about another type.
"""

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from benchmarks import harness
from lt_detectron2 import losses
from lt_detectron2.losses.base import ClassificationLoss
from lt_detectron2.ops import one_pass
from lt_detectron2.statistics import ClassStatistics
from tests.synchronisation import NoSynchronisation

from .factory import (
    BATCH_KINDS,
    RANDOM_METHODS,
    STATISTICS,
    K,
    batch,
    build,
    cases,
    loss_classes,
    needs_new_compiler,
    needs_statistics,
    state_of,
    train,
    value_and_gradient,
)
from .two_processes import run_in_two_processes

LossClass = type[ClassificationLoss]
Make = Callable[..., ClassificationLoss]

each_loss = pytest.mark.parametrize(
    "loss_class", loss_classes(), ids=[loss_class.__name__ for loss_class in loss_classes()]
)
each_name = pytest.mark.parametrize("name", cases())
each_case = pytest.mark.parametrize("make", cases().values(), ids=cases().keys())

HOLDS_A_FACTOR_CONSTANT = {
    "DropLoss(background_rule=equalize)": "weights of background terms are computed from scores",
    "SeesawLoss": "the compensation factor is computed from scores",
    "SeesawLoss(objectness=False)": "the compensation factor is computed from scores",
}
"""Cases whose gradient is, by design, not the derivative of their value."""


# ---- construction


@each_loss
def test_constructor_takes_hyper_parameters_by_keyword_only(loss_class: LossClass):
    parameters = list(inspect.signature(loss_class).parameters.values())
    wired = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert wired in (["num_classes"], ["num_classes", "statistics"])
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY)


@each_loss
def test_docstring_documents_each_hyper_parameter(loss_class: LossClass):
    documentation = vars(loss_class)["__doc__"] or ""
    assert documentation.strip()
    own = inspect.signature(loss_class).parameters.values()
    missing = [p.name for p in own if p.kind is p.KEYWORD_ONLY and p.name not in documentation]
    assert not missing


@each_loss
def test_method_has_a_section_in_the_documentation(loss_class: LossClass):
    methods = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
    headings = [line for line in methods.read_text("utf-8").splitlines() if line[:4] == "### "]
    assert any(f"`{loss_class.__name__}`" in heading for heading in headings)


@each_loss
def test_statistics_of_another_set_are_refused(loss_class: LossClass):
    if not needs_statistics(loss_class):
        pytest.skip("reads no statistics")
    with pytest.raises(ValueError, match=rf"expected statistics of {K + 1} classes, got {K}: \w+"):
        loss_class(K + 1, STATISTICS)


@each_loss
def test_no_class_is_refused(loss_class: LossClass):
    statistics = ClassStatistics([], [], 0)
    with pytest.raises(ValueError, match="at least one foreground class, got 0: set num_classes"):
        build(loss_class, statistics)


@each_case
def test_single_class_works(make: Make):
    loss = make(ClassStatistics([20], [15], 30))
    logits = torch.randn(4, loss.num_logits, requires_grad=True)
    value = loss(logits, torch.tensor([0, 1, 1, 0]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
    assert loss.scores(logits).shape == (4, 2)


@each_case
def test_class_without_training_images_works(make: Make):
    instances, images = STATISTICS.instance_count.clone(), STATISTICS.image_count.clone()
    instances[3] = images[3] = 0
    loss = make(ClassStatistics(instances, images, STATISTICS.num_images))
    logits, targets = batch(loss)
    # Neither where it is absent, as promised, nor where it turns up all the same.
    for present in (targets.masked_fill(targets == 3, K), targets.masked_fill(targets == 6, 3)):
        value, gradient = value_and_gradient(loss, logits, present)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
    scores = loss.scores(logits)
    assert ((scores >= 0) & (scores <= 1)).all()


@each_case
def test_initialised_classifier_starts_with_a_moderate_loss(make: Make):
    loss = make()
    classifier = nn.Linear(8, loss.num_logits)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    loss.init_classifier(classifier)
    _, targets = batch(loss)
    value = loss(classifier(torch.randn(len(targets), 8)), targets)
    assert 0 < value < 20


# ---- values


@each_case
@pytest.mark.parametrize("kind", BATCH_KINDS)
def test_value_is_mean_of_region_losses(make: Make, kind: str):
    loss = make().eval()
    logits, targets = batch(loss, kind=kind)
    value, gradient = value_and_gradient(loss, logits, targets)
    regions = loss.region_losses(logits, targets)
    assert value.shape == () and regions.shape == targets.shape
    assert torch.isfinite(gradient).all() and gradient.any()
    assert_close(value, regions.detach().sum() / len(targets))


@each_case
def test_no_region_costs_nothing_and_has_a_graph(make: Make):
    loss = make()
    logits = torch.randn(0, loss.num_logits, requires_grad=True)
    value = loss(logits, torch.zeros(0, dtype=torch.int64))
    assert value == 0
    value.backward()
    assert logits.grad.shape == (0, loss.num_logits)
    assert loss.scores(logits).shape == (0, K + 1)
    assert all(torch.isfinite(buffer).all() for buffer in loss.buffers())


@each_case
def test_a_loss_says_whether_anything_is_called_background(make: Make):
    loss = make()
    assert loss.has_background == bool(loss.scores(batch(loss)[0])[:, -1].any())


@each_case
def test_scores_are_probabilities_with_the_background_last(make: Make):
    loss = train(make())
    logits, _ = batch(loss)
    scores = loss.scores(logits)
    assert scores.shape == (len(logits), K + 1)
    assert ((scores >= 0) & (scores <= 1)).all()


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_logits_stay_finite(make: Make, dtype: torch.dtype):
    loss = train(make())
    for seed, kind in enumerate(BATCH_KINDS):
        logits, targets = batch(loss, kind=kind, seed=seed, dtype=dtype)
        extreme = 1e4 * logits.detach().sign()
        value, gradient = value_and_gradient(loss, extreme, targets)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        scores = loss.scores(extreme)
        assert ((scores >= 0) & (scores <= 1)).all()
    assert all(torch.isfinite(buffer).all() for buffer in loss.buffers())


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_are_computed_in_float32(make: Make, dtype: torch.dtype):
    loss = train(make()).eval()
    logits, targets = batch(loss, dtype=dtype)
    value, gradient = value_and_gradient(loss, logits, targets)
    expected, expected_gradient = value_and_gradient(loss, logits.float(), targets)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert_close(value, expected, rtol=0, atol=0)
    assert_close(gradient, expected_gradient.to(dtype), rtol=0, atol=0)
    assert_close(loss.scores(logits), loss.scores(logits.float()), rtol=0, atol=0)


@each_case
def test_autocast_changes_nothing(make: Make):
    loss = train(make()).eval()
    logits, targets = batch(loss, dtype=torch.float32)
    expected, expected_gradient = value_and_gradient(loss, logits, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(loss, logits, targets)
        scores = loss.scores(logits)
    assert_close((value, gradient), (expected, expected_gradient), rtol=0, atol=0)
    assert_close(scores, loss.scores(logits), rtol=0, atol=0)


@each_case
def test_float32_agrees_with_float64(make: Make):
    loss = train(make()).eval()
    logits, targets = batch(loss, dtype=torch.float32)
    single = value_and_gradient(loss, logits, targets)
    double = value_and_gradient(loss, logits.double(), targets)
    assert [item.dtype for item in (*single, *double)] == 2 * [torch.float32] + 2 * [torch.float64]
    assert_close(single, double, check_dtype=False, rtol=1e-4, atol=1e-5)


# ---- gradients


@each_case
@pytest.mark.parametrize("kind", BATCH_KINDS)
def test_step_along_the_gradient_lowers_the_loss(make: Make, kind: str):
    loss = train(make()).eval()
    logits, targets = batch(loss, kind=kind)
    before, gradient = value_and_gradient(loss, logits, targets)
    after = loss(logits.detach() - 1e-3 * gradient / gradient.norm(), targets)
    assert after < before


@each_name
def test_gradient_is_the_derivative(name: str):
    if name in HOLDS_A_FACTOR_CONSTANT:
        pytest.skip(HOLDS_A_FACTOR_CONSTANT[name])
    loss = train(cases()[name]()).eval()
    logits, targets = batch(loss, regions=7)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), (logits,), fast_mode=True)


# ---- state


@each_case
def test_only_training_changes_the_state(make: Make):
    loss = train(make())
    before = state_of(loss)
    logits, targets = batch(loss)
    loss.eval()
    loss(logits, targets).backward()
    loss.train()
    with torch.no_grad():
        loss(logits, targets)
    loss.scores(logits)
    assert_close(state_of(loss), before, rtol=0, atol=0)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_casting_the_model_leaves_the_state_as_it_is(make: Make, dtype: torch.dtype):
    loss, cast = train(make()), train(make())
    cast = torch.nn.Sequential(cast).to(dtype)[0]
    assert_close(state_of(cast), state_of(loss), rtol=0, atol=0)
    assert_close(state_of(train(cast)), state_of(train(loss)), rtol=0, atol=0)


@each_case
def test_saved_state_resumes_the_run(make: Make):
    uninterrupted = train(make())
    resumed = make()
    resumed.load_state_dict(uninterrupted.state_dict())
    for seed in range(2):
        logits, targets = batch(resumed, seed=seed)
        expected = value_and_gradient(uninterrupted, logits, targets)
        assert_close(value_and_gradient(resumed, logits, targets), expected, rtol=0, atol=0)
    assert_close(state_of(resumed), state_of(uninterrupted), rtol=0, atol=0)
    assert_close(resumed.scores(logits), uninterrupted.scores(logits), rtol=0, atol=0)


@each_case
def test_nothing_of_a_batch_stays_on_the_loss(make: Make):
    loss = train(make())
    shapes = {name: buffer.shape for name, buffer in make().named_buffers()}
    assert {name: buffer.shape for name, buffer in loss.named_buffers()} == shapes
    assert not any(buffer.requires_grad for buffer in loss.buffers())
    attributes = {k: v for k, v in vars(loss).items() if k not in ("_buffers", "_parameters")}
    assert not list(_tensors(attributes))


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, dict):
        for value in item.values():
            yield from _tensors(value)
    elif isinstance(item, (list, tuple, set)):
        for value in item:
            yield from _tensors(value)


# ---- symmetry


@each_case
def test_renaming_classes_changes_nothing(make: Make):
    order = torch.tensor(
        [5, 0, 11, 3, 8, 1, 10, 2, 7, 4, 9, 6]
    )  # new class i is old class order[i]
    renamed_statistics = ClassStatistics(
        STATISTICS.instance_count[order], STATISTICS.image_count[order], STATISTICS.num_images
    )
    loss = make(draw=_halves)
    renamed = make(renamed_statistics, draw=_halves)
    columns = torch.arange(loss.num_logits)
    columns[_class_columns(renamed)] = _class_columns(loss)[..., order]
    new_name = torch.cat([order.argsort(), torch.tensor([K])])
    for seed in range(3):  # state of the first batches shows in the later ones
        logits, targets = batch(loss, seed=seed)
        value, gradient = value_and_gradient(loss, logits, targets)
        new_value, new_gradient = value_and_gradient(renamed, logits[:, columns], new_name[targets])
        assert_close(new_value, value)
        assert_close(new_gradient, gradient[:, columns])
    scores = loss.scores(logits)
    assert_close(renamed.scores(logits[:, columns])[:, :K], scores[:, order])
    assert_close(renamed.scores(logits[:, columns])[:, K], scores[:, K])


def _halves(shape: torch.Size, rows: Tensor | None = None) -> Tensor:
    size = tuple(shape) if rows is None else (len(rows), *shape[1:])
    return torch.full(size, 0.5)


def _class_columns(loss: ClassificationLoss) -> Tensor:
    """(.., K) logit columns of the classes; a loss says so itself if they are not 0..K-1."""
    columns = getattr(loss, "class_columns", torch.arange(K))[:K]
    if getattr(loss, "formulation", None) == "softmax_2c":  # a second column a task
        return torch.stack([columns, columns + K + 1])
    return columns


@each_case
def test_order_of_regions_does_not_matter(make: Make):
    if _draws(make):
        pytest.skip("draws belong to regions by their place")
    loss, other = make(), make()
    for seed in range(2):
        logits, targets = batch(loss, seed=seed)
        order = torch.randperm(len(targets))
        assert_close(other(logits[order], targets[order]), loss(logits, targets))


# ---- randomness and the device


def _draws(make: Make) -> bool:
    loss = make(replay=False)
    before = torch.get_rng_state()
    loss(*batch(loss))
    return not torch.equal(before, torch.get_rng_state())


@each_case
def test_random_numbers_come_from_the_overridable_methods(make: Make):
    if not _draws(make):
        pytest.skip("draws nothing")
    loss = make()  # its random methods draw from a generator of their own
    assert any(hasattr(loss, name) for name in RANDOM_METHODS)
    before = torch.get_rng_state()
    for kind in BATCH_KINDS:
        loss(*batch(loss, kind=kind))
    assert torch.equal(before, torch.get_rng_state())


@each_case
def test_training_never_waits_for_the_device(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_pass, "looking_is_free", lambda tensor: False)  # as on a GPU
    loss = make()
    for kind in BATCH_KINDS:
        logits, targets = batch(loss, kind=kind)
        with NoSynchronisation():
            # Not forward, which looks at the targets where they lie on the CPU.
            loss.region_losses(logits, targets, reduction="mean").backward()


@needs_new_compiler
@each_case
def test_compiles_without_a_graph_break(make: Make):
    loss, compiled = (make(draw=_halves, replay=False) for _ in range(2))
    torch._dynamo.reset()
    compiled.compile(fullgraph=True, backend="eager")
    logits, targets = batch(loss, dtype=torch.float32)
    expected = value_and_gradient(loss, logits, targets)
    assert_close(value_and_gradient(compiled, logits, targets), expected)
    assert_close(state_of(compiled), state_of(loss))


@needs_new_compiler
@pytest.mark.parametrize("loss_class", [losses.EqualizationLoss, losses.SoftmaxEqualizationLoss])
def test_compiles_twice_for_any_number_of_regions(loss_class: LossClass):
    """Once for the first number, and once for all others; a loss of each family."""
    loss, graphs = build(loss_class, draw=_halves, replay=False), []
    torch._dynamo.reset()
    loss.compile(fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for num_regions in (24, 17, 31, 40):
        loss(torch.randn(num_regions, loss.num_logits), torch.zeros(num_regions, dtype=torch.int64))
    assert len(graphs) == 2


MEMORY = 1.7
"""
Most memory that a step takes, its gradient included, in tensors of the logits' size: the gradient
and blocks of rows, and no second matrix of the logits' type.
"""
MORE_MEMORY = {
    "DropLoss": 2.2,  # draws for each region and class
    "DropLoss(background_rule=equalize)": 3.1,  # draws and scores
    "EqualizationLossV2(formulation=softmax_2c)": 2.2,
    "EqualizedFocalLoss": 2.2,
    "FBSAEGLoss": 2.5,  # draws
    "FederatedLoss": 2.4,  # copies the columns of its classes
    "GumbelLoss": 2.4,  # draws
    "SoftmaxCrossEntropyLoss": 3.1,  # torch's own
    "SoftmaxEqualizationLoss": 1.9,  # draws for the foreground
}
"""The same by case, or else by class."""


@each_name
@pytest.mark.parametrize(
    "num_regions, num_classes", [(2048, 300), (256, 2500)], ids=["many regions", "many classes"]
)
def test_memory_is_that_of_the_gradient(name: str, num_regions: int, num_classes: int):
    """With many classes, a matrix of classes by classes would be ten times the logits."""
    counts = torch.arange(1, num_classes + 1) ** 2
    loss = cases()[name](ClassStatistics(counts, counts // 4 + 1, 10**8), replay=False)
    targets = torch.arange(num_regions) * 7 % num_classes
    targets[torch.arange(num_regions) % 4 > 0] = num_classes  # but for a quarter, background
    logits = torch.randn(num_regions, loss.num_logits, requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(logits, targets), logits)

    step()
    bound = MORE_MEMORY.get(name, MORE_MEMORY.get(name.partition("(")[0], MEMORY))
    assert harness._peak_bytes(step) <= bound * 4 * logits.numel()


# ---- several processes


SCENARIOS = {
    "halves": (("mixed", 12), ("mixed", 12)),
    "an empty process": (("mixed", 12), ("mixed", 0)),
    "a process without foreground": (("mixed", 12), ("background", 12)),
    "no foreground": (("background", 8), ("background", 12)),
}
STEPS = 3
WEIGHT_STEPS = 5
LOOKS_AT_ITS_PROCESS = (
    "AdaptiveClassSuppressionLoss",  # samples among its regions
    "DropLoss",  # reads the tail's share among them
    "FocalLoss",  # divides by its positives
    "GroupSoftmaxLoss",  # samples among its regions
    "GumbelLoss",  # with DropLoss's weights
)
"""Losses that, as published, depend on how regions are split; all variants but NEEDS_NO_OTHER."""
NEEDS_NO_OTHER = (
    "DropLoss(background_rule=equalize)",
    "DropLoss(background_rule=keep)",
    "FocalLoss(normalizer=entries, background_column=True)",
    "FocalLoss(normalizer=regions, alpha=None, gamma=0.5)",
    "GumbelLoss(weighting=none, background_column=True)",
    "GumbelLoss(weighting=equalization, official_gradient=False)",
)
COUNTED_OVER_PROCESSES = {"FBSAEGLoss": {"sync_sigma": True}}
"""Switches that let a loss count over processes what, as published, it counts in its own."""
DIVIDES_BY_ALL_POSITIVES = ("EqualizedFocalLoss", "EqualizedFocalLoss(quality=True)")
"""Cases whose normalizer is counted over processes, so that each region weighs the same."""


def _parts(loss: ClassificationLoss, scenario: str, step: int) -> list[tuple[Tensor, Tensor]]:
    """What each of the two processes gets in a step."""
    return [
        batch(loss, regions, kind, seed=2 * step + rank)
        for rank, (kind, regions) in enumerate(SCENARIOS[scenario])
    ]


def _train_all_losses(rank: int) -> dict[tuple[str, str], dict[str, Tensor]]:
    states = {}
    for name, make in cases().items():
        for scenario in SCENARIOS:
            loss = make()
            for step in range(STEPS):
                loss(*_parts(loss, scenario, step)[rank]).backward()
            model = _train_classifier(name, scenario, [rank])
            states[name, scenario] = state_of(loss) | {"weight": model.weight.detach()}
    return states


class _Draws:
    """Random numbers of regions, which are those of their process, and of classes, of all."""

    def __init__(self):
        self.step, self.regions = 0, {}

    def __call__(self, shape: torch.Size, rows: Tensor | None = None) -> Tensor:
        if len(shape) == 1:
            return self._numbers(len(SCENARIOS), shape)
        parts = [self._numbers(rank, (n, *shape[1:])) for rank, n in self.regions.items()]
        return torch.cat(parts) if rows is None else torch.cat(parts)[rows]

    def _numbers(self, rank: int, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(100 * self.step + rank)
        return torch.rand(tuple(shape), generator=generator)


def _train_classifier(
    name: str, scenario: str, ranks: list[int], in_turn: bool = False
) -> nn.Linear:
    """
    Five steps of a linear classifier in float64, on the regions of one process or of both.

    Detectron2 takes the mean over the regions of a process, then that over processes.

    Args:
        in_turn: the loss sees the regions of both one after the other.
    """
    draws = _Draws()
    switches = COUNTED_OVER_PROCESSES.get(name.split("(")[0], {})
    loss = cases()[name](draw=draws, **switches)
    generator = torch.Generator().manual_seed(1)
    classifier = nn.Linear(loss.num_logits, loss.num_logits).double()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    model = DistributedDataParallel(classifier) if len(ranks) == 1 else classifier
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.5, momentum=0.9)
    for step in range(WEIGHT_STEPS):
        parts = [_parts(loss, scenario, step)[rank] for rank in ranks]
        draws.step = step
        draws.regions = {rank: len(targets) for rank, (_, targets) in zip(ranks, parts)}
        features, targets = (torch.cat(items) for items in zip(*parts))
        logits = model(features.detach())
        if len(ranks) == 1 or name in DIVIDES_BY_ALL_POSITIVES:
            value = loss(logits, targets)
        elif in_turn:
            value = 0
            for rank, (features, targets) in zip(ranks, parts):
                draws.regions = {rank: len(targets)}
                value = value + loss(model(features.detach()), targets) / len(ranks)
        else:
            share = [
                targets.new_full((len(t),), 0.5 / max(len(t), 1), dtype=torch.float64)
                for _, t in parts
            ]
            value = (loss.region_losses(logits, targets) * torch.cat(share)).sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return classifier


@pytest.fixture(scope="module")
def states_of_two_processes() -> list[dict[tuple[str, str], dict[str, Tensor]]]:
    return run_in_two_processes(_train_all_losses)


@each_name
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_have_the_state_of_one(
    name: str, scenario: str, states_of_two_processes: list
):
    """Every loss counts in two processes what one counts, also if one of them has no object."""
    loss = cases()[name]()
    for step in range(STEPS):
        logits, targets = zip(*_parts(loss, scenario, step))
        loss(torch.cat(logits), torch.cat(targets)).backward()
    expected = state_of(loss)
    first, second = (dict(states[name, scenario]) for states in states_of_two_processes)
    assert_close(first, second, rtol=0, atol=0)
    del first["weight"]
    assert_close(first, expected, rtol=1e-6, atol=1e-9)


@each_name
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_learn_what_one_does(name: str, scenario: str, states_of_two_processes: list):
    """After five steps in float64 two processes have the weights of one with all regions."""
    in_turn = name.startswith(LOOKS_AT_ITS_PROCESS) and name not in NEEDS_NO_OTHER
    expected = _train_classifier(name, scenario, [0, 1], in_turn).weight.detach()
    for states in states_of_two_processes:
        assert_close(states[name, scenario]["weight"], expected, rtol=1e-9, atol=1e-12)


# ---- bad input


@each_loss
def test_wrong_logits_are_refused(loss_class: LossClass):
    loss = build(loss_class)
    targets = torch.zeros(4, dtype=torch.int64)
    width = loss.num_logits
    label = rf"{loss_class.__name__}\({K} classes\) expects"
    with pytest.raises(
        ValueError,
        match=rf"{label} logits of shape \(4, {width}\), got \(4, {width - 1}\): "
        "size the classifier with loss.num_logits",
    ):
        loss(torch.zeros(4, width - 1), targets)
    with pytest.raises(ValueError, match=rf"{label} logits of shape .* got \(4,\): size"):
        loss(torch.zeros(4), targets)
    with pytest.raises(ValueError, match=rf"{label} floating point logits, got torch.int64: \w+"):
        loss(torch.zeros(4, width, dtype=torch.int64), targets)
    with pytest.raises(ValueError, match=rf"{label} logits of shape"):
        loss.scores(torch.zeros(4, width + 1))


@each_loss
def test_wrong_targets_are_refused(loss_class: LossClass):
    loss = build(loss_class)
    logits = torch.zeros(4, loss.num_logits)
    label = rf"{loss_class.__name__}\({K} classes\) expects"
    for targets in (
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(4, 1, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4),
    ):
        with pytest.raises(ValueError, match=rf"{label} int64 targets of shape \(4,\), got .*: "):
            loss(logits, targets)
    for targets in ([0, 0, 0, K + 1], [-1, 0, 0, K]):
        found = rf"got {min(targets)}..{max(targets)}: remove ignored regions"
        with pytest.raises(ValueError, match=rf"{label} targets in 0..{K} .*{found}"):
            loss(logits, torch.tensor(targets))


# ---- the package


def test_losses_need_nothing_but_torch():
    program = (
        "import sys, lt_detectron2.losses\n"
        "assert 'torch' in sys.modules\n"
        "assert not {'detectron2', 'fvcore', 'pycocotools', 'cv2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_exports_are_sorted_and_complete():
    assert losses.__all__ == sorted(losses.__all__)
    assert len(loss_classes()) >= 5
    subclasses = [c for c in _descendants(ClassificationLoss) if not inspect.isabstract(c)]
    ours = [c for c in subclasses if c.__module__.startswith("lt_detectron2.losses.")]
    assert set(ours) <= set(loss_classes())


def _descendants(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from _descendants(child)
