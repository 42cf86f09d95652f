"""Bars: seen at a terminal when something takes long, and only then."""

import io

import pytest

from lt_detectron2 import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """What is written to standard error, which is a terminal or not."""

    def run(stream, seconds_before_shown, **options):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(progress, "SECONDS_BEFORE_SHOWN", seconds_before_shown)
        assert list(progress.track(range(7), "counting", **options)) == list(range(7))
        return stream.getvalue()

    return run


def test_bar_with_total_at_a_terminal(shown):
    text = shown(Terminal(), 0.0)
    assert "counting" in text and "0/7" in text


@pytest.mark.parametrize(
    "stream, delay, options",
    [(io.StringIO(), 0.0, {}), (Terminal(), 0.0, {"quiet": True}), (Terminal(), 60.0, {})],
    ids=["file", "other process", "soon done"],
)
def test_nothing_is_written(shown, stream, delay, options):
    assert shown(stream, delay, **options) == ""


def test_counter_at_a_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "SECONDS_BEFORE_SHOWN", 0.0)
    with progress.counter("writing", unit="annotations", total=10) as bar:
        bar.update(4)
        assert bar.n == 4
    assert "writing" in stream.getvalue()
