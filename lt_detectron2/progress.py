"""How far something long has come, for people at a terminal; nobody else sees anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BEFORE_SHOWN = 2.0
"""What takes less needs no bar."""


def track(
    items: Iterable[Item],
    what: str,
    *,
    unit: str = "image",
    total: int | None = None,
    quiet: bool = False,
) -> Iterable[Item]:
    """
    The items, with a bar on the terminal: how many of how many, how fast, how long still.

    Args:
        items: to be gone through once.
        what: is being done, a few words.
        unit: name of one item.
        total: how many there are, where ``len(items)`` does not say.
        quiet: no bar, as in all processes but the main one.
    """
    return _bar(what, unit, total, quiet, items)


def counter(what: str, *, unit: str, total: int, quiet: bool = False) -> tqdm:
    """The same as a context manager, for steps of several items: ``bar.update(number)``."""
    return _bar(what, unit, total, quiet)


def _bar(
    what: str, unit: str, total: int | None, quiet: bool, items: Iterable[Item] | None = None
) -> tqdm:
    return tqdm(
        items,
        desc=what,
        total=total,
        unit=f" {unit}",
        unit_scale=total is not None and total > 100_000,
        delay=SECONDS_BEFORE_SHOWN,
        disable=True if quiet else None,  # None hides it where standard error is no terminal
        dynamic_ncols=True,
        leave=False,
    )
