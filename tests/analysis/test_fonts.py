"""Class names in scripts that matplotlib's own font lacks."""

import logging
import warnings

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from lt_detectron2.analysis import fonts
from lt_detectron2.analysis.style import new_figure, to_pixels, verbatim

SQUARE = [(0, 0), (0, 900), (900, 900), (900, 0)]


@pytest.fixture
def as_if_new(monkeypatch):
    """Nothing is known of this machine's fonts, and what a test does to them is forgotten."""
    caches = fonts._letters_of, fonts._installed, fonts._warn_of_boxes
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(fonts, "_family_of", {})
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    with matplotlib.rc_context():
        yield
    for cache in caches:
        cache.cache_clear()


def font_with(letters, path, family):
    """A font whose every letter is a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo(SQUARE[0])
    for point in SQUARE[1:]:
        pen.lineTo(point)
    pen.closePath()
    names = [f"letter{i}" for i in range(len(letters))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, letters), names)))
    builder.setupGlyf(dict.fromkeys([".notdef", *names], pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900)
    builder.setupPost()
    builder.save(path)
    return str(path)


def drawn(text, on_axis=False):
    """Picture of a text, and what matplotlib says about it."""
    figure, axes = new_figure(2, 2)
    if on_axis:
        axes.set_yticks([0.5], [verbatim(text)])
    else:
        axes.text(0.1, 0.5, verbatim(text))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return to_pixels(figure), [str(warning.message) for warning in said]


def test_font_of_this_machine_is_used(as_if_new, tmp_path, monkeypatch, caplog):
    path = font_with("\u7ea2\u8272", tmp_path / "font.ttf", "Noto Sans CJK SC")
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    installed = [path, str(tmp_path / "damaged.ttf")]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: installed)
    latin, _ = drawn("caf\u00e9")
    picture, said = drawn("\u7ea2\u8272 cat")
    assert not said and not caplog.records
    # Fonts that a text does not need change nothing.
    np.testing.assert_array_equal(latin, drawn("caf\u00e9")[0])
    # Both letters are black squares.
    assert (picture[0] == 0).sum() > (drawn("\u7ea2 cat")[0][0] == 0).sum() > 0


@pytest.mark.parametrize("family", ["Noto Sans CJK SC", "A font of one's own"])
def test_names_on_an_axis(as_if_new, tmp_path, monkeypatch, caplog, family):
    """Their texts are made with the axes, before the first name is known."""
    path = font_with("\u7ea2\u8272", tmp_path / "font.ttf", family)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [path])
    _, said = drawn("\u7ea2\u8272", on_axis=True)
    assert not said and not caplog.records


def test_letters_without_a_font_are_named_once(as_if_new, caplog):
    with caplog.at_level(logging.WARNING):
        for text in ("\u7ea2", "\u8272 \u7ea2", "\u0e04", "cat", "\U0001f996", "\U00017000"):
            verbatim(text)  # the last is a letter without a name
    assert [record.args for record in caplog.records] == [("CJK",), ("THAI",), ("such",)]
    assert "fonts-noto-cjk" in caplog.text


@pytest.mark.parametrize("text", ["", "a cat", "\t\n\u3000", "\u00e9\u03b1\u0416", "\x00\u200b"])
def test_nothing_is_looked_for_without_need(as_if_new, monkeypatch, text):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: pytest.fail("looked"))
    verbatim(text)


def test_matplotlib_does_not_repeat_it(as_if_new, recwarn):
    warnings.filterwarnings(*fonts.UNSAID)
    figure, axes = new_figure(2, 2)
    axes.text(0.1, 0.5, "\u7ea2")
    to_pixels(figure)
    assert not recwarn.list
