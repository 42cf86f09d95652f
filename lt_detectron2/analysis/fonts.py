"""Fonts for class names in scripts that matplotlib's own font lacks, as Chinese or Thai."""

from __future__ import annotations

import functools
import logging
import unicodedata
import warnings
from collections.abc import Iterable

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.text import Text

logger = logging.getLogger(__name__)

PREFERRED = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "Malgun Gothic", "Nirmala UI"),
    *("PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("IPAexGothic", "IPAGothic", "NanumGothic", "Arial Unicode MS"),
)
"""Families to look into first, of Linux, Windows and macOS: sans serif, and complete."""

UNSAID = "ignore", r"Glyph \d+ .*missing from", UserWarning
"""For every letter of every picture; the log says it once."""

BOXES = "Last Resort"
"""A family that has a box for every letter."""

warnings.filterwarnings(*UNSAID)


def provide(text: str) -> None:
    """
    Let figures show a text, with fonts of this machine.

    Letters that no font has stay boxes, and the log says so, once for each script.
    """
    families = list(matplotlib.rcParams["font.family"])
    for letter in sorted(set(text)):
        if letter.isspace() or not letter.isprintable() or _is_in(families, letter):
            continue
        script = unicodedata.name(letter, "such").split()[0] if letter.isalpha() else "such"
        if script not in _family_of:
            _family_of[script] = _find_family(letter)
        family = _family_of[script]
        if family and family not in families:
            families.append(family)
        if not _is_in(families, letter):
            _warn_of_boxes(script)
    matplotlib.rcParams["font.family"] = families


def use_in(figure: Figure) -> None:
    """Give all texts of a figure what :func:`provide` has found, also to those made before."""
    for text in figure.findobj(Text):
        text.set_fontfamily(matplotlib.rcParams["font.family"])


_family_of: dict[str, str] = {}
"""Family for a script, empty where there is none: each is looked for once."""


def _find_family(letter: str) -> str:
    """The first family of this machine that has a letter, empty if none has it."""
    for family, path in _installed().items():
        if ord(letter) in font_manager.get_font(path).get_charmap():
            return family
    return ""


def _is_in(families: Iterable[str], letter: str) -> bool:
    return any(letter in _letters_of(name) for name in families)


@functools.cache
def _letters_of(family: str) -> frozenset[str]:
    path = font_manager.findfont(FontProperties(family=[family]))
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


@functools.cache
def _installed() -> dict[str, str]:
    """A file of each family, the preferred families first."""
    known = {font.fname for font in fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):  # its list may be an old one
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError):  # damaged, or of a kind that it cannot read
            continue
    paths = {f.name: f.fname for f in fontManager.ttflist if not f.name.startswith(BOXES)}
    order = [*(name for name in PREFERRED if name in paths), *sorted(paths)]
    return {name: paths[name] for name in order}


@functools.cache
def _warn_of_boxes(script: str) -> None:
    logger.warning(
        "No font here has %s letters: figures show boxes in the names of classes. Install one that "
        "has them; for Chinese, Japanese and Korean there is Noto Sans CJK (fonts-noto-cjk)",
        script,
    )
