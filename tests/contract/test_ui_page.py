"""`/ui` without a browser: what is served, with which policy. With one: `tests/browser`."""

import re
import tomllib
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from tests.contract.conftest import RunningServer, Serve

FOLDER = Path(__file__).parents[2] / "proxy" / "ui"
ASSETS = sorted(path.name for path in FOLDER.iterdir() if path.name != "index.html")


def test_the_page_needs_no_key_and_what_it_shows_does(serve: Serve) -> None:
    server = serve(api_keys=SecretStr("alice=sk-alice"))
    assert httpx.get(server.origin + "/ui").headers["content-type"].startswith("text/html")
    assert httpx.get(server.origin + "/ui/app.js").status_code == 200
    assert httpx.get(server.origin + "/v1/cache/live").status_code == 401


@pytest.mark.parametrize("name", ASSETS)
def test_every_file_is_served_with_its_type_and_packaged(server: RunningServer, name: str) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    answer = httpx.get(f"{server.origin}/ui/{name}")
    assert answer.headers["content-type"].split(";")[0] == types[Path(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-cache"
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    packaged = project["tool"]["setuptools"]["package-data"]["proxy"]
    assert name in {path.name for pattern in packaged for path in FOLDER.parent.glob(pattern)}


def test_the_policy_allows_this_origin_and_nothing_inline(server: RunningServer) -> None:
    policy = httpx.get(server.origin + "/ui").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert {rules[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}


def test_no_script_or_style_is_inline_and_nothing_is_loaded_from_elsewhere() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|style=|<script>|\son\w+=", page)
    for name in ("index.html", *ASSETS):
        text = (FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2Fui_page.py", "%2E%2E"])
def test_nothing_else_is_served(server: RunningServer, name: str) -> None:
    assert httpx.get(f"{server.origin}/ui/{name}").status_code == 404


def test_it_can_be_turned_off(serve: Serve) -> None:
    server = serve(ui=False)
    assert httpx.get(server.origin + "/ui").status_code == 404
    assert httpx.get(server.origin + "/ui/app.js").status_code == 404
