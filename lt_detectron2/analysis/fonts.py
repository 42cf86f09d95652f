"""Fonts for class names in scripts that matplotlib's own font lacks, as Chinese or Thai."""

from __future__ import annotations

import functools
import logging
import unicodedata
import warnings

import matplotlib
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties, fontManager

logger = logging.getLogger(__name__)

FAMILIES = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "Malgun Gothic", "Nirmala UI"),
    *("PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("IPAexGothic", "IPAGothic", "NanumGothic", "Arial Unicode MS", "Unifont"),
    *("Noto Sans Thai", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil"),
)
"""Common ones of Linux, Windows and macOS, in the order in which a letter is looked up."""

UNSAID = "ignore", r"Glyph \d+ .*missing from", UserWarning
"""For every letter of every picture; the log says it once."""

warnings.filterwarnings(*UNSAID)


def provide(text: str) -> None:
    """
    Let figures that are drawn from now on show a text, with fonts of this machine.

    Letters that no font has stay boxes, and the log says so, once for each script.
    """
    letters = {letter for letter in text if letter.isprintable() and not letter.isspace()}
    families = tuple(matplotlib.rcParams["font.family"])
    if letters <= _letters_of(families):
        return
    families = _with_those_of_this_machine(families)
    matplotlib.rcParams["font.family"] = list(families)
    for letter in sorted(letters - _letters_of(families)):
        _warn_of_boxes(unicodedata.name(letter).split()[0] if letter.isalpha() else "such")


@functools.cache
def _letters_of(families: tuple[str, ...]) -> frozenset[str]:
    fonts = (font_manager.findfont(FontProperties(family=[name])) for name in families)
    return frozenset(chr(c) for path in fonts for c in font_manager.get_font(path).get_charmap())


@functools.cache
def _with_those_of_this_machine(families: tuple[str, ...]) -> tuple[str, ...]:
    known = {font.fname for font in fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):  # its list may be an old one
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError):  # damaged, or of a kind that it cannot read
            continue
    installed = {font.name for font in fontManager.ttflist}
    return (*families, *(n for n in FAMILIES if n in installed and n not in families))


@functools.cache
def _warn_of_boxes(script: str) -> None:
    logger.warning(
        "No font here has %s letters: figures show boxes in the names of classes. Install a font "
        "that has them, such as Noto Sans CJK (package fonts-noto-cjk)",
        script,
    )
