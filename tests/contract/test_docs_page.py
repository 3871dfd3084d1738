"""`/schema` as a browser without internet sees it."""

import re

import httpx
import pytest

from tests.contract.conftest import RunningServer


def test_the_document_is_served(server: RunningServer) -> None:
    answer = httpx.get(server.origin + "/schema/openapi.json")
    assert answer.headers["content-type"].startswith("application/json")
    assert {"/v1/chat/completions", "/v1/models", "/health", "/ready", "/metrics"} <= set(answer.json()["paths"])


def test_the_page_loads_only_what_this_server_has(server: RunningServer) -> None:
    page = httpx.get(server.origin + "/schema")
    assert page.headers["content-type"].startswith("text/html")
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "http" not in page.text and len(linked) == 4
    for path in linked:
        if path != "data:,":
            asset = httpx.get(server.origin + path)
            assert asset.status_code == 200 and len(asset.content) > 100


def test_the_policy_of_the_page_forbids_everything_else(server: RunningServer) -> None:
    policy = httpx.get(server.origin + "/schema").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"


def test_the_page_has_no_inline_script_or_style(server: RunningServer) -> None:
    page = httpx.get(server.origin + "/schema").text
    assert not re.search(r"<style|style=|<script>|\son\w+=", page)


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "LICENSE", "..%2F__init__.py"])
def test_nothing_else_of_the_folder_is_served(server: RunningServer, name: str) -> None:
    assert httpx.get(f"{server.origin}/schema/{name}").status_code == 404
