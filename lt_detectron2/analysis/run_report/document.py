"""A report as a tree of blocks, written as Markdown or as one HTML file without any other."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...evaluation.report import text_table
from ...statistics import GROUP_NAMES
from .page import PAGE


@dataclass(frozen=True)
class Text:
    """A paragraph; what stands in backticks is code, and [r], [c], [f] are the groups."""

    text: str


@dataclass(frozen=True)
class Remark:
    """A paragraph that says what is missing, and why."""

    text: str


@dataclass(frozen=True)
class Number:
    """One of the few numbers that a reader looks for first; ``group`` gives it its colour."""

    label: str
    value: str
    note: str = ""
    group: str = ""


@dataclass(frozen=True)
class Numbers:
    numbers: Sequence[Number]


@dataclass(frozen=True)
class Table:
    """The first ``num_texts`` columns hold text, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_texts: int = 1


@dataclass(frozen=True)
class Figure:
    """A chart: a picture on white."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Photographs, a row for each, in columns that have titles."""

    titles: Sequence[str]
    rows: Sequence[Sequence[Path]]


@dataclass(frozen=True)
class Code:
    text: str
    language: str = ""


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown on demand."""

    title: str
    blocks: Sequence[Block]


Block = Text | Remark | Numbers | Table | Figure | Gallery | Code | Folded


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    sections: Sequence[Section]
    lead: Sequence[Block] = field(default=())
    """What stands before the first section."""


def write_document(document: Document, folder: Path) -> tuple[Path, Path]:
    """Write report.md and report.html; pictures of the first are links, of the second within."""
    paths = folder / "report.md", folder / "report.html"
    for path, text in zip(paths, (to_markdown(document, folder), to_html(document))):
        path.write_text(text, encoding="utf-8")
    return paths


# ---- Markdown


def to_markdown(document: Document, folder: Path) -> str:
    """
    The document as GitHub shows it.

    Args:
        document: whose pictures lie below ``folder``.
        folder: which links are relative to.
    """
    parts = [f"# {document.title}", document.subtitle, *_all_markdown(document.lead, folder)]
    for section in document.sections:
        parts += [f"## {section.title}", *_all_markdown(section.blocks, folder)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _all_markdown(blocks: Sequence[Block], folder: Path) -> list[str]:
    return [_markdown(block, folder) for block in blocks]


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Text):
        return _with_group_names(block.text)
    if isinstance(block, Remark):
        return f"*{block.text}*"
    if isinstance(block, Numbers):
        notes = [number.note for number in block.numbers]
        rows = [[number.value for number in block.numbers]] + ([notes] if any(notes) else [])
        return _markdown_table([n.label for n in block.numbers], rows, 0)
    if isinstance(block, Table):
        return _markdown_table(block.header, block.rows, block.num_texts)
    if isinstance(block, Figure):
        return f"![{block.caption}]({_link(block.path, folder)})\n\n{block.caption}"
    if isinstance(block, Gallery):
        rows = [[f"![]({_link(path, folder)})" for path in row] for row in block.rows]
        return _markdown_table(block.titles, rows, len(block.titles))
    if isinstance(block, Code):
        return f"```{block.language}\n{block.text.rstrip()}\n```"
    inner = "\n\n".join(_all_markdown(block.blocks, folder))
    return f"<details><summary>{html.escape(block.title)}</summary>\n\n{inner}\n\n</details>"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_texts: int) -> str:
    escaped = [
        [_with_group_names(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]
    ]
    lines = text_table(escaped[0], escaped[1:]).splitlines()
    rulers = lines[1].strip("| ").split(" | ")
    rulers = ["-" * len(r) if i < num_texts else r[:-1] + ":" for i, r in enumerate(rulers)]
    lines[1] = "| " + " | ".join(rulers) + " |"
    return "\n".join(lines)


def _with_group_names(text: str) -> str:
    return _GROUP_MARK.sub(lambda found: f"*{_GROUPS[found[1]]}*", text)


def _link(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix().replace(" ", "%20")


# ---- HTML


def to_html(document: Document) -> str:
    """The document as one file: pictures and style within, no script."""
    sections = [
        f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>'
        f"{_all_html(section.blocks)}</section>"
        for number, section in enumerate(document.sections)
    ]
    links = "".join(
        f'<a href="#s{number}">{html.escape(section.title)}</a>'
        for number, section in enumerate(document.sections)
    )
    return PAGE.substitute(
        title=html.escape(document.title),
        subtitle=_inline(document.subtitle),
        links=links,
        body=_all_html(document.lead) + "\n".join(sections),
    )


def _all_html(blocks: Sequence[Block]) -> str:
    return "\n".join(_html(block) for block in blocks)


def _html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Remark):
        return f'<p class="remark">{_inline(block.text)}</p>'
    if isinstance(block, Numbers):
        cards = "".join(_card(number) for number in block.numbers)
        return f'<div class="numbers">{cards}</div>'
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Figure):
        picture = f'<img src="{_data_url(block.path)}" alt="{html.escape(block.caption)}">'
        return f"<figure>{picture}<figcaption>{_inline(block.caption)}</figcaption></figure>"
    if isinstance(block, Gallery):
        titles = "".join(f"<span>{html.escape(title)}</span>" for title in block.titles)
        pictures = "".join(
            f'<img src="{_data_url(path)}" alt="{html.escape(title)}">'
            for row in block.rows
            for title, path in zip(block.titles, row)
        )
        columns = f"--columns: {len(block.titles)}"
        return f'<div class="gallery" style="{columns}">{titles}{pictures}</div>'
    if isinstance(block, Code):
        return f"<pre><code>{html.escape(block.text.rstrip())}</code></pre>"
    title = html.escape(block.title)
    return f"<details><summary>{title}</summary>{_all_html(block.blocks)}</details>"


def _card(number: Number) -> str:
    note = f"<small>{html.escape(number.note)}</small>" if number.note else ""
    kind = f' class="{html.escape(number.group)}"' if number.group else ""
    label, value = html.escape(number.label), html.escape(number.value)
    return f"<div{kind}><span>{label}</span><b>{value}</b>{note}</div>"


def _html_table(table: Table) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if i < table.num_texts else "" for i in range(len(row))]
        return "".join(f"<{tag}{k}>{_inline(c)}</{tag}>" for k, c in zip(kinds, row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    head = f"<thead><tr>{cells(table.header, 'th')}</tr></thead>"
    return f'<div class="table"><table>{head}<tbody>{body}</tbody></table></div>'


def _inline(text: str) -> str:
    """Escaped, with what stands in backticks as code and groups in their colours."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return _GROUP_MARK.sub(
        lambda found: f'<span class="{_GROUPS[found[1]]}">{_GROUPS[found[1]]}</span>', text
    )


_GROUPS = {name[0]: name for name in GROUP_NAMES}
_GROUP_MARK = re.compile(rf"\[([{''.join(_GROUPS)}])\]")
"""A group as labels on pictures have it, "[r]"; spelled out in a text."""


def _data_url(path: Path) -> str:
    kind = {".jpg": "jpeg", ".png": "png"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
