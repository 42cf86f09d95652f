"""Finding what would make the host wait for a GPU, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoSynchronisation(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host has to wait for on a GPU."""

    WAITING = (
        "_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique", "_unique2",
        "unique_dim", "unique_consecutive", "bincount", "equal", "repeat_interleave.Tensor",
        "multinomial",
    )  # fmt: skip

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = function.__name__  # "nonzero.default"
        waits = name.split(".")[0] in self.WAITING or name in self.WAITING
        selects = name.startswith("index.") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert not (waits or selects), f"{name} makes the host wait for the device"
        return function(*args, **(kwargs or {}))
