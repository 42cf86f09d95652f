"""Damaged inputs: changes to a value inside a JSON-like object, and to the bytes of a file."""

import contextlib
import copy
import functools
import re
import signal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lt_detectron2.errors import UserError

SECONDS_PER_INPUT = 30

ODD_VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1.5, -0.0, 1e300, float("inf"), float("nan"), 10**30, 2**63]
        + ["", "x", "12", "ключ 猫\u202e", "../../outside", "\0", [], [[]], {}, [None], [1, 2]]
        + [[1, 2, 3, 4, 5, 6, 7, 8], ["a"] * 4, [float("nan")] * 4, {"size": [5, 5]}]
        + [{"size": [40, 50], "counts": "0"}, {"size": [40, 50], "counts": [1999]}]
        + [{"size": [40, 50], "counts": "~~~~"}, {"size": [40, 50], "counts": "Poo"}]
    ),
    st.integers(-5, 300),
    st.floats(width=32),
    st.text(max_size=8),
)

REMEDY = re.compile(
    r"(?:[:;,]| or| and) (?:add|check|choose|compare|complete|convert|copy|correct|did you mean|"
    r"encode|evaluate|export|get|give|keep|look|mend|name|number|pass|predict|put|register|remove|"
    r"renumber|run|save|see|set|use|write|expected one of:)(?: [^:;]*)?$"
    r"|must be [^:;]+, got [^:;]+$"
)
"""What a message ends with: what to do, what there is to choose from, or what a value must be."""

INTERNALS = re.compile(
    r"Traceback|<class |<_io|object at 0x|NoneType|is not iterable|has no attribute|\bself\b|"
    r"\w+\(\) |unexpected keyword|positional argument|numpy\.ndarray|\bdtype\b"
)
"""What only who wrote the program can understand."""

MOST_CHARACTERS = 600


def each_number(short, long):
    """Run a test with a few inputs in the normal suite, and with many among the long tests."""
    return pytest.mark.parametrize(
        "number", [short, pytest.param(long, marks=pytest.mark.reliability)]
    )


num_inputs = 0
"""Inputs that were tried in this process."""


def explore(check, number, *strategies):
    """Call ``check`` with ``number`` drawn inputs, the same ones in each run."""

    @functools.wraps(check)
    def counted(*inputs, **named):
        global num_inputs
        num_inputs += 1
        check(*inputs, **named)

    settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(*strategies)(counted))()


def works_or_is_explained(action, file, record):
    """
    The result of ``action()``, or None if it raised one UserError in plain words.

    Args:
        file: the message names it.
        record: pattern of what the message names in it, or says of the whole file.
    """
    with time_limit(SECONDS_PER_INPUT):
        try:
            return action()
        except UserError as error:
            message = str(error)
    assert file in message, message
    said = message.replace(file, "")
    assert "\n" not in message and len(message) < MOST_CHARACTERS, message
    assert re.search(record, said), f"no record: {message}"
    assert not INTERNALS.search(said), f"internals: {message}"
    assert REMEDY.search(said), f"no remedy: {message}"
    return None


@contextlib.contextmanager
def time_limit(seconds):
    """End what takes longer with a TimeoutError."""

    def stop(*_):
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def changed(draw, original):
    """The object with one to three of its values replaced, removed or doubled."""
    content = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double"]))
        if what == "remove":
            del parent[key]
        elif what == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(draw(ODD_VALUES))
    return content


def _places(content):
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


@st.composite
def damaged(draw, original):
    """The bytes cut short, or with some of them changed, removed or added."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        what = draw(st.sampled_from(["cut", "change", "remove", "insert"]))
        if what == "cut":
            del content[at:]
        elif what == "change" and at < len(content):
            content[at] = draw(st.integers(0, 255))
        elif what == "remove":
            del content[at : at + draw(st.integers(1, 20))]
        else:
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(content)
