"""The site is built without a warning, is complete, and fetches nothing."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from detectron2.config import get_cfg

from lt_detectron2.config import add_long_tail_config

from .pages import PAGES, REPOSITORY, text_of

KEY = re.compile(
    r"(?<![\w.])(?:LONG_TAIL|MODEL|SOLVER|DATALOADER|TEST|DATASETS|INPUT)(?:\.\w+)+(?![\w*/])"
)
FILE = re.compile(r"`((?:configs|datasets|docs|lt_detectron2|tools|benchmarks)/[\w./-]+)`")
GENERATED = re.compile(r"^datasets/(coco|lvis|openimages|synthlt)")
INVENTED = re.compile(r"my_method|MyLoss")
"""The loss that CONTRIBUTING.md makes up."""

FETCHING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "use": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
    ]  # --quiet hides warnings from --strict
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Fetched(HTMLParser):
    """Collects what a browser gets by itself to show a page, and the links."""

    def __init__(self):
        super().__init__()
        self.addresses, self.links, self.ids = [], [], set()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        if tag in FETCHING or (tag == "link" and values.get("rel") != "canonical"):
            self.addresses.append(values.get(FETCHING.get(tag, "href")) or "")
        if tag == "a":
            self.links.append(values.get("href") or "")


def read(path):
    page = Fetched()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_nothing_is_fetched(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for path in pages:
        for address in read(path).addresses:
            assert not re.match(r"(\w+:)?//", address), (path.name, address)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_links_arrive(site):
    pages = {path: read(path) for path in site.rglob("*.html") if path.name != "404.html"}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"\w+:", link):
                continue
            target, _, anchor = link.partition("#")
            file = (path.parent / target).resolve() if target else path
            ok = file in pages and anchor in pages[file].ids if anchor else file.exists()
            if not ok:
                broken.append((path.name, link))
    assert not broken


def test_configs_are_shown(site):
    papers = (site / "papers.html").read_text(encoding="utf-8")
    link = re.search(r'"(files/configs/LVISv1-[\w-]+\.html)#(eqlv2_[\w.]+)"', papers)
    shown = read(site / link[1])
    assert link[2] in shown.ids and "EqualizationLossV2" in (site / link[1]).read_text("utf-8")


def test_a_link_to_nothing_fails(tmp_path, monkeypatch):
    from tools import site_pages

    warned = []
    monkeypatch.setattr(site_pages.logger, "warning", lambda *words: warned.append(words))
    link = site_pages._LINK.search("[a](../configs/nothing.yaml)")
    assert site_pages._in_site("papers.md", link) == "../configs/nothing.yaml"
    assert warned and warned[0][2] == "configs/nothing.yaml"


@pytest.mark.parametrize("page", PAGES)
def test_names_exist(page):
    cfg = get_cfg()
    add_long_tail_config(cfg)
    text = INVENTED.sub("*", text_of(page))
    for key in set(KEY.findall(text)):
        node = cfg
        for part in key.split("."):
            assert part in node, f"{key} is no key"
            node = node[part]
    for path in set(FILE.findall(text)):
        assert GENERATED.match(path) or (REPOSITORY / path).exists(), f"{path} is not there"


def test_measured_numbers_of_the_choice_are_those_of_the_results():
    rows = {}
    for page in ("docs/results_synthlt.md", "docs/results_second_stages.md"):
        for line in text_of(page).splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.setdefault(cells[0], set()).update(cells)
    shown = re.findall(r"^\| (.+?) \| (.+ ± .+) \|$", text_of("docs/choosing.md"), re.MULTILINE)
    assert len(shown) > 5
    for name, numbers in shown:
        for number in numbers.split(" | "):
            assert number in rows[name], (name, number)
