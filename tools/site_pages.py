"""
What MkDocs does for the site beyond docs/ (a hook, see mkdocs.yml).

Links of the pages are those that work where the repository is browsed, such as
`../configs/grids.yaml`. Markdown files outside docs/ become pages, other files that a page links to
are shown on one page a folder, and links are turned to these. A link to nothing is a warning, so
that `mkdocs build --strict` fails.
"""

import logging
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "datasets/README.md": "datasets.md",
}
"""Pages from outside docs/: where they lie, and their place in the site."""

_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".py": "python", ".toml": "toml"}

logger = logging.getLogger("mkdocs.hooks.site_pages")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and pages of the files that any page links to."""
    for source, page in PAGES.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    shown: dict[str, set[str]] = {}
    for file in files.documentation_pages():
        for path in _linked(file.src_uri, file.content_string):
            folder, name = (path, "") if (REPOSITORY / path).is_dir() else posixpath.split(path)
            shown.setdefault(folder, set()).add(name)
    for folder, names in shown.items():
        page = File.generated(config, _page_of(folder), content=_listing(folder, names - {""}))
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that work in the repository into links of the site."""
    uri = page.file.src_uri
    return _with_links(markdown, lambda link: _in_site(uri, link))


def _with_links(markdown: str, replace: Callable[[re.Match], str]) -> str:
    """The text with its relative links replaced; what looks like one in code stays."""
    parts = _CODE.split(markdown)
    return "".join(
        part if index % 2 else _LINK.sub(replace, part) for index, part in enumerate(parts)
    )


def _in_repository(uri: str, link: str) -> str:
    """The path in the repository that a link of a page means."""
    source = _SOURCES.get(uri, f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _is_shown(path: str) -> bool:
    """Whether a linked path is a file or folder that needs a page to be shown on."""
    full = REPOSITORY / path
    inside = path.startswith("docs/") and not full.is_dir()
    return full.exists() and path not in PAGES and not inside


def _linked(uri: str, markdown: str) -> list[str]:
    """Paths of the files and folders that a page links to and that need a page."""
    if uri.startswith("files/"):
        return []
    found: list[str] = []
    _with_links(markdown, lambda link: found.append(_in_repository(uri, link[1])) or link[0])
    return [path for path in found if _is_shown(path)]


def _in_site(uri: str, link: re.Match) -> str:
    path, anchor = _in_repository(uri, link[1]), link[2] or ""
    if uri.startswith("files/"):
        return link[0]
    if path in PAGES:
        target = PAGES[path]
    elif _is_shown(path):
        is_folder = (REPOSITORY / path).is_dir()
        target = _page_of(path if is_folder else posixpath.dirname(path))
        anchor = "" if is_folder else f"#{posixpath.basename(path)}"
    elif path.startswith("docs/"):
        target = path.removeprefix("docs/")
    else:
        logger.warning("%s links to %s, which is not in the repository", uri, path)
        return link[0]
    return posixpath.relpath(target, posixpath.dirname(uri) or ".") + anchor


def _page_of(folder: str) -> str:
    return f"files/{folder or 'repository'}.md"


def _listing(folder: str, names: set[str]) -> str:
    """A page of the files of a folder: those named, or the names of all of them."""
    text = f"---\nsearch:\n  exclude: true\n---\n\n# {folder}\n"
    for name in sorted(names):
        file = REPOSITORY / folder / name
        content = file.read_text(encoding="utf-8").rstrip()
        language = _LANGUAGES.get(file.suffix, "text")
        text += f"\n## {name} {{ #{name} }}\n\n````{language}\n{content}\n````\n"
    if not names:
        text += "".join(f"\n- `{name}`" for name in sorted(os.listdir(REPOSITORY / folder)))
    return text
