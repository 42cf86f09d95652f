"""Counts the damaged inputs of each test, for the table that `make reliability` writes."""

import pytest

from . import mutations


@pytest.fixture(autouse=True)
def count_inputs(record_property):
    """Record how many inputs a test has tried."""
    before = mutations.num_inputs
    yield
    if mutations.num_inputs > before:
        record_property("inputs", mutations.num_inputs - before)
