"""The Triton kernels on a GPU: what the interpreter cannot tell."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lt_detectron2.losses.base import ClassificationLoss
from lt_detectron2.ops import SoftmaxPart, sigmoid_cross_entropy, softmax_cross_entropy
from lt_detectron2.ops.implementations import triton_obstacle
from lt_detectron2.statistics import ClassStatistics
from tests.losses.factory import batch, build, cases, loss_classes, state_of

from .kernel_cases import check, logits, operations

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or triton_obstacle() is not None,
    reason=triton_obstacle() or "needs a GPU",
)

NAMES = list(operations(1, 5))
REGIONS, CLASSES = 8192, 1203
LOSS_CLASSES = loss_classes()
each_loss = pytest.mark.parametrize("loss_class", LOSS_CLASSES, ids=lambda item: item.__name__)


@contextmanager
def _no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _on_gpu(
    loss: ClassificationLoss, implementation: str = "triton"
) -> tuple[ClassificationLoss, Tensor, Tensor]:
    """A loss that runs the kernels, whatever is the default, and a batch for it."""
    loss = loss.cuda()
    loss.implementation = implementation
    z, targets = batch(loss, dtype=torch.float32)
    return loss, z.detach().cuda().requires_grad_(), targets.cuda()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows, columns", [(0, 5), (1, 5), (300, 1204), (64, 9000)])
def test_operations_equal_torch(name: str, rows: int, columns: int):
    check(operations(rows, columns, "cuda")[name], logits(rows, columns, "cuda"), atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("softmax")])
def test_what_is_not_a_number_shows(name: str):
    z = logits(300, 1204, "cuda").detach()
    z[:, 600] = float("nan")
    z.requires_grad_()
    outcomes = []
    for implementation in ("torch", "triton"):
        loss = operations(300, 1204, "cuda")[name](z, implementation=implementation).loss
        outcomes.append((loss.isnan(), torch.autograd.grad(loss.sum(), z)[0].isnan().any(dim=1)))
    assert_close(*outcomes)
    assert outcomes[0][0].all() and outcomes[0][1].all()


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_more_than_two_to_the_31_logits(name: str):
    rows, columns = 2**21 + 3, 1030
    if torch.cuda.mem_get_info()[0] < 3 * 4 * rows * columns:
        pytest.skip("needs 26 GB of free memory")
    z = torch.zeros(rows, columns, device="cuda")
    z[-3:] = logits(3, columns, "cuda").detach()
    targets = torch.arange(rows, device="cuda") % columns

    def losses(z: Tensor, targets: Tensor, implementation: str) -> Tensor:
        if name == "softmax":
            part = SoftmaxPart(targets)
            return softmax_cross_entropy(z, part, implementation=implementation).loss
        options = {"background": columns - 1, "implementation": implementation}
        return sigmoid_cross_entropy(z, targets, **options).loss

    result = losses(z.requires_grad_(), targets, "triton")
    (gradient,) = torch.autograd.grad(result.sum(), z)
    # The last rows by themselves, in float64.
    tail = z[-3:].detach().double().requires_grad_()
    expected = losses(tail, targets[-3:], "torch")
    (expected_gradient,) = torch.autograd.grad(expected.sum(), tail)
    assert_close(result[-3:].double(), expected, rtol=1e-4, atol=1e-4)
    assert_close(gradient[-3:].double(), expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", cases())
def test_losses_equal_torch(name: str):
    outcomes = []
    for implementation in ("torch", "triton"):
        loss, z, targets = _on_gpu(cases()[name](), implementation)
        for draws in ("uniform", "sampling_mask"):  # replayed on the CPU's generator elsewhere
            if hasattr(loss, draws):
                setattr(loss, draws, _seeded(getattr(type(loss), draws).__get__(loss)))
        value = loss(z, targets)
        outcomes.append((value.detach(), torch.autograd.grad(value, z)[0], state_of(loss)))
    assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-5)


def _seeded(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def same_draw(*args: object) -> Tensor:
        with torch.random.fork_rng():
            torch.cuda.manual_seed(7)
            return draw(*args)

    return same_draw


@pytest.mark.parametrize("name", cases())
def test_training_never_waits_for_the_device(name: str):
    loss, z, targets = _on_gpu(cases()[name](replay=False))
    loss(z, targets).backward()  # compiles
    with _no_synchronisation():
        loss(z, targets).backward()


@pytest.mark.parametrize("name", cases())
def test_step_is_captured_and_replayed(name: str):
    loss, z, targets = _on_gpu(cases()[name](draw=_halves))
    loss.eval()

    def step() -> tuple[Tensor, Tensor]:
        value = loss(z, targets)
        return value, torch.autograd.grad(2 * value, z)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        z.add_(torch.linspace(-1, 1, z.shape[1], device="cuda"))
    for _ in range(2):
        graph.replay()
        expected = step()
        assert_close(captured[0].detach(), expected[0].detach())
        assert_close(captured[1], expected[1])


def _halves(shape: torch.Size, rows: Tensor | None = None) -> Tensor:
    size = tuple(shape) if rows is None else (len(rows), *shape[1:])
    return torch.full(size, 0.5, device="cuda")


@each_loss
def test_memory_is_three_times_the_logits_at_most(loss_class: type[ClassificationLoss]):
    counts = torch.arange(1, CLASSES + 1) ** 2
    statistics = ClassStatistics(counts, counts // 4 + 1, 10**7)
    loss, *_ = _on_gpu(build(loss_class, statistics, replay=False))
    targets = (torch.arange(REGIONS, device="cuda") % (4 * CLASSES)).clamp(max=CLASSES)
    z = torch.randn(REGIONS, loss.num_logits, device="cuda", requires_grad=True)
    torch.autograd.grad(loss(z, targets), z)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(loss(z, targets), z)
    assert torch.cuda.max_memory_allocated() - before <= 3.1 * 4 * z.numel()


@each_loss
def test_compiles_without_a_graph_break(loss_class: type[ClassificationLoss]):
    """The kernels run as they are; in a compiled loss torch's operations take their place."""
    loss, z, targets = _on_gpu(build(loss_class, draw=_halves, replay=False).eval(), "auto")
    expected = loss(z, targets)
    torch._dynamo.reset()
    value = torch.compile(loss, fullgraph=True)(z, targets)
    assert_close(value, expected, rtol=1e-4, atol=1e-5)
    gradients = (torch.autograd.grad(item, z)[0] for item in (value, expected))
    assert_close(*gradients, rtol=1e-4, atol=1e-5)
