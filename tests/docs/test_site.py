"""The site builds strictly, has every page, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import PAGES, ROOT

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
NOT_LOADED = ("canonical", "prev", "next", "alternate", "edit")
LINK = re.compile(r"\]\(([^)\s]+?)(#[^)]*)?\)")


def nav_files(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    assert not isinstance(parts, str)
    return [file for part in parts for file in nav_files(part)]  # type: ignore[union-attr]


def test_the_navigation_has_every_page_once() -> None:
    files = nav_files(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.name != "README.md"]
    assert sorted(files) == sorted(pages)


def test_links_of_the_readme_lead_somewhere() -> None:
    for target, _ in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target


class Loads(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") not in NOT_LOADED and (address := values.get(LOADED[tag])):
            self.addresses.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_it_builds_strictly_and_has_every_page(site: Path) -> None:
    for page in PAGES:
        if page.name != "README.md":
            assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    assert (site / "grafana" / "anaphora.json").is_file()
    assert '"docs":' in (site / "search" / "search_index.json").read_text(encoding="utf-8")


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = set()
    for page in site.rglob("*.html"):
        reader = Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        loaded |= set(reader.addresses)
    assert loaded
    assert [address for address in loaded if re.match(r"(?:\w+:)?//", address)] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
