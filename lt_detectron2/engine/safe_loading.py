"""
Reading checkpoints without running what is in them.

A pickle is a program. torch's own files are read with ``weights_only=True``; the .pkl files of
Detectron2's and Detectron's model zoos, which are pickles of NumPy arrays, by an unpickler that
makes arrays, numbers and texts only. LONG_TAIL.ALLOW_PICKLE switches to full pickles.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from typing import IO, Any

import numpy as np
import torch

from ..environment import warn_of_old_torch
from ..errors import CheckpointError, reason

PLAIN = re.compile(r"[<>=|]?[biufcSU]\d*")
"""Codes of dtypes whose elements are numbers or texts, not Python objects."""

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
            if not allow_pickle:
                warn_of_old_torch(torch.__version__)
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
    """
    Makes arrays, numbers and texts.

    NumPy's own functions are not handed out: given a buffer as the memory of Python objects, or a
    dtype that hides them, they take addresses from the file. Methods stand for them, whose
    attributes a file cannot set.
    """

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "_codecs.encode": self._encode,
            "__builtin__.bytes": self._no_bytes,
            "numpy.dtype": self._dtype,
            "numpy.ndarray": None,  # what `_reconstruct` is to make
        }
        for core in ("core", "_core"):
            known[f"numpy.{core}.multiarray._reconstruct"] = self._reconstruct
            known[f"numpy.{core}.multiarray.scalar"] = self._scalar
            known[f"numpy.{core}.numeric._frombuffer"] = self._frombuffer
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[f"{module}.{name}"]

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":  # as which pickles of the second protocol write bytes
            raise pickle.UnpicklingError(f"it has bytes as {encoding!r}")
        return text.encode("latin1")

    def _no_bytes(self) -> bytes:
        return b""

    def _dtype(self, code: str, *flags: object) -> _PlainDtype:
        return _PlainDtype(code)

    def _reconstruct(self, *arguments: object) -> _PlainArray:
        return _PlainArray(0, np.uint8)  # what it holds comes with its state

    def _frombuffer(
        self, data: bytes, dtype: _PlainDtype, shape: tuple, order: str, *axes: object
    ) -> _PlainArray:
        if order not in ("C", "F"):
            raise pickle.UnpicklingError(f"it has an array in order {order!r}")
        array = _PlainArray(0, np.uint8)
        array.__setstate__((shape, dtype, order == "F", data))
        return array

    def _scalar(self, dtype: _PlainDtype, data: bytes | str) -> Any:
        return np.frombuffer(_bytes(data), dtype.value, count=1)[0]


class _PlainDtype:
    """A dtype of numbers or texts."""

    __slots__ = ("value",)

    def __init__(self, code: str):
        if not PLAIN.fullmatch(code):
            raise pickle.UnpicklingError(f"it has an array of {code!r}")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _, order, *of_records = state
        if any(part is not None for part in of_records[:3]):
            raise pickle.UnpicklingError("it has an array of records")
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _PlainArray(np.ndarray):
    """An array that takes its content from bytes alone."""

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, is_fortran, data = state
        data = _bytes(data)
        has_shape = all(isinstance(length, int) and length >= 0 for length in shape)
        if not has_shape or math.prod(shape) * dtype.value.itemsize != len(data):
            raise pickle.UnpicklingError(f"it has an array of shape {shape} in {len(data)} bytes")
        super().__setstate__((1, tuple(shape), dtype.value, bool(is_fortran), data))


def _bytes(data: bytes | str) -> bytes:
    """What an array holds; pickles of Python 2 have texts there."""
    content = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError(f"it has an array made of a {type(data).__name__}")
    return bytes(content)


def _unpickle(file: IO[bytes], allow_pickle: bool) -> Any:
    unpickler = pickle.Unpickler if allow_pickle else _ArrayUnpickler
    return unpickler(file, encoding="latin1").load()


def _refused(error: Exception) -> str:
    """The line of torch's long message that names what it refused."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [reason(error)])[0][:200]
