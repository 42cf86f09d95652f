"""
Reading checkpoints without running what is in them.

A pickle is a program. torch's own files are read with ``weights_only=True``; the .pkl files of
Detectron2's and Detectron's model zoos, which are pickles of NumPy arrays, by an unpickler that
knows arrays, numbers and texts only. LONG_TAIL.ALLOW_PICKLE switches to full pickles.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

import torch

from ..errors import CheckpointError, reason

ARRAY_GLOBALS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
}
"""What a pickle of NumPy arrays needs, by module and name."""

OPT_IN = (
    "if you trust whoever made it, load it with LONG_TAIL.ALLOW_PICKLE True, which lets the file "
    "run any program"
)


def load_checkpoint_file(path: str, *, allow_pickle: bool = False) -> dict[str, Any]:
    """
    What a .pth, .pt, .pyth or .pkl file holds, on the CPU.

    Args:
        path: a local file.
        allow_pickle: let the file build any Python object, and so run any program.

    Raises:
        CheckpointError: the file is damaged, or holds more than weights.
    """
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                content = _unpickle(file, allow_pickle)
        else:
            content = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        refused = reason(error) if allow_pickle else _refused(error)
        raise CheckpointError(
            f"{path} holds other things than weights, or is damaged ({refused}): get it again, or "
            + OPT_IN
        ) from error
    except Exception as error:  # damaged archives fail in many ways
        raise CheckpointError(
            f"{path} cannot be read ({reason(error)}): it is damaged or no checkpoint; get it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict of weights: save "
            "model.state_dict()"
        )
    return content


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickle(file: IO[bytes], allow_pickle: bool) -> Any:
    unpickler = pickle.Unpickler if allow_pickle else _ArrayUnpickler
    return unpickler(file, encoding="latin1").load()


def _refused(error: Exception) -> str:
    """The line of torch's long message that names what it refused."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [reason(error)])[0][:200]
