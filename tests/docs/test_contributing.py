"""The loss that CONTRIBUTING.md makes up is one, and does what it says."""

import re
import textwrap
from pathlib import Path

import torch
from torch.testing import assert_close

from lt_detectron2.losses import SigmoidCrossEntropyLoss
from lt_detectron2.statistics import ClassStatistics

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
STATISTICS = ClassStatistics([10, 40, 400], [10, 25, 100], 100)


def test_example_of_a_loss():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = {"__name__": "lt_detectron2.losses.my_method", "__package__": "lt_detectron2.losses"}
    exec(compile(textwrap.dedent(block), str(PAGE), "exec"), module)
    make = module["MyLoss"]
    assert all(f"{name}: " in make.__doc__ for name in make.__init__.__kwdefaults__)

    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 3, generator=generator), torch.tensor([0, 1, 2, 3, 3, 2, 0])
    plain = SigmoidCrossEntropyLoss(3)
    assert_close(make(3, STATISTICS, strength=0.0)(logits, targets), plain(logits, targets))
    terms = torch.nn.functional.softplus(logits) * STATISTICS.image_frequency.float()
    own = targets < 3
    terms[own, targets[own]] = torch.nn.functional.softplus(-logits[own, targets[own]])
    assert_close(make(3, STATISTICS)(logits, targets), terms.sum(dim=1).mean())
