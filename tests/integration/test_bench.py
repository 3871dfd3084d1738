"""`anaphora bench` over HTTP against a real server with the fake model: every study, its pictures, the report."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.bench_command import STUDY_NAMES, bench
from benchmarks.bench_report import html_report
from benchmarks.bench_run import RunOptions, run, write_pictures
from benchmarks.sizes import Sizes
from benchmarks.studies import STUDIES
from proxy.__main__ import main
from tests.contract.conftest import RunningServer, running

TINY = Sizes(
    rounds=2,
    shared=200,
    questions=2,
    base=40,
    multiples=(1, 4),
    lengths=(64, 400),
)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running({"max_num_batched_tokens": 1024}) as started:
        yield started


@pytest.fixture(scope="module")
def report(server: RunningServer) -> dict[str, Any]:
    options = RunOptions(STUDY_NAMES, TINY, seed=1, base_url=server.origin + "/v1", kind="tiny")
    found = asyncio.run(run(options, Console(quiet=True)))
    return json.loads(json.dumps(found))  # as it comes back from the file


@pytest.fixture(scope="module")
def pictures(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pictures(report, tmp_path_factory.mktemp("pictures"))


def results(report: dict[str, Any], name: str) -> Any:
    outcome = report["studies"][name]
    assert "results" in outcome, outcome
    return outcome["results"]


def test_the_command_knows_every_study() -> None:
    assert tuple(STUDIES) == STUDY_NAMES
    listed = CliRunner().invoke(main, ["--help"])
    assert re.search(r"^  bench ", listed.output, re.MULTILINE)


def test_the_report_says_where_and_how_it_was_measured(report: dict[str, Any]) -> None:
    assert report["machine"]["versions"].keys() >= {"anaphora", "torch", "openai"}
    assert report["load"].keys() == {"before", "after"}
    assert (report["run"]["kind"], report["run"]["seed"]) == ("tiny", 1)
    [server] = report["servers"]
    assert server["model"] == "fake"
    assert server["traits"] == dict.fromkeys(("is_anaphora", "takes_salt", "ignores_eos", "says_cached"), True)


def test_five_cities_share_all_but_the_question(report: dict[str, Any]) -> None:
    found = results(report, "weather")
    first, *others = found["cached_tokens"]
    assert first == 0, "a round begins with an empty cache"
    assert all(cached > found["prompt_tokens"] * 0.7 for cached in others)


def test_order_decides_what_is_shared_and_rendering_mends_one_of_two(report: dict[str, Any]) -> None:
    found = results(report, "ordering")
    cached = {name: of["cached_tokens"]["median"] for name, of in found["arrangements"].items()}
    assert cached["shared content last"] < cached["shared content first"] / 4
    assert cached["last, as a system message"] == cached["shared content first"]
    assert cached["last, but marked"] == cached["shared content last"], "this server runs without --stable-first"
    assert [move["from"] for move in found["moved"]["last, as a system message"]] == ["messages[1]"]


def test_longer_prefixes_are_cached_whole(report: dict[str, Any]) -> None:
    series = results(report, "scaling")["series"]
    for of in series.values():
        assert [row["prompt_tokens"] for row in of] == sorted(row["prompt_tokens"] for row in of)
        assert all(row["cached_tokens"] > row["prompt_tokens"] - 80 for row in of)
    assert [row["at"] for row in series["multiples"]] == [1, 4]


def test_pictures_are_drawn_and_the_page_holds_them(report: dict[str, Any], pictures: dict[str, Path]) -> None:
    assert len(pictures) >= len(STUDY_NAMES)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.values())
    page = html_report(report, pictures)
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|url\(|@import|<script|https?://(?!127\.0\.0\.1)""", page)
    for study in STUDIES.values():
        assert f'<h2 id="{study.name}">' in page


def test_text_of_the_server_cannot_become_markup(report: dict[str, Any], pictures: dict[str, Path]) -> None:
    evil = json.loads(json.dumps(report))
    evil["servers"][0]["model"] = "<script>alert(1)</script>"
    evil["studies"]["weather"] = {"failed": "<img src=x>", "seconds": 0.0}
    page = html_report(evil, pictures)
    assert "<script" not in page
    assert "<img src=x>" not in page


def test_a_run_from_the_command_line_writes_its_folder(server: RunningServer, tmp_path: Path) -> None:
    arguments = ["--quick", "--study", "ordering", "--base-url", server.origin + "/v1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "results.json", "ordering.png"}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["studies"].keys() == {"ordering"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base-url", "http://127.0.0.1:9/v1", "--out", "{}"], "not ready"),
        (["--peer", "nameless", "--out", "{}"], "--peer: 'nameless' is not of the form name=value."),
        (["--peer", "a=http://x/v1", "--peer", "a=http://y/v1", "--out", "{}"], "a name of its own"),
        (["--base-url", "http://x/v1", "--model", "m", "--out", "{}"], "--model is of the server started here"),
        (["--study", "nothing"], "Invalid value for '--study'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.servers.GIVEN_TIMEOUT_S", 0.3)
    done = CliRunner().invoke(bench, [argument.format(tmp_path) for argument in arguments])
    assert done.exit_code != 0
    assert said in done.output
    assert "Traceback" not in done.output
