"""`anaphora bench` over HTTP against a real server with the fake model: every study, its pictures, the report."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.bench_command import STUDY_NAMES, bench
from benchmarks.bench_report import html_report
from benchmarks.bench_run import RunOptions, run, write_pictures
from benchmarks.servers import Server
from benchmarks.sizes import Sizes
from benchmarks.spread import Spread
from benchmarks.studies import STUDIES
from benchmarks.study import LoadOptions
from proxy.__main__ import main
from tests.contract.conftest import RunningServer, eventually, running

TINY = Sizes(
    rounds=2,
    shared=200,
    questions=2,
    base=40,
    multiples=(1, 4),
    lengths=(64, 400, 90_000),
    case_shared=200,
    product_questions=2,
    turns=3,
    cursors=2,
    agent_steps=2,
    reply=6,
    prefixes=(128, 1024),
    sharers=(1, 20),
    sharing_prefix=64,
    workload=12,
    edited=40,
    trials=2,
    trial_prompt=150,
    sessions=2,
    load_turns=2,
    load_system=100,
    peer_prompt=120,
    trace_requests=4,
)
TRACE = [
    {"timestamp": at * 10, "input_length": 520, "output_length": 2, "hash_ids": [7, 100 + at]} for at in range(3)
] + [{"timestamp": 40, "input_length": 90_000, "output_length": 2, "hash_ids": list(range(176))}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running({"max_num_batched_tokens": 1024, "num_blocks": 16384}) as started:
        yield started


@pytest.fixture(scope="module")
def report(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    trace = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, TRACE)))
    with running() as other:
        options = RunOptions(
            STUDY_NAMES,
            TINY,
            seed=1,
            base_url=server.origin + "/v1",
            kind="tiny",
            peers=[Server("other", base_url=other.origin + "/v1")],
            load=LoadOptions(rate=50, trace=trace),
        )
        found = asyncio.run(run(options, Console(quiet=True)))
    yield json.loads(json.dumps(found))  # as it comes back from the file


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


def test_help_waits_for_nothing_heavy() -> None:
    heavy = ("matplotlib", "openai", "numpy", "rich", "torch", "httpx")
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom proxy.__main__ import main\n"
        "for asked in (['--help'], ['bench', '--help']):\n    assert CliRunner().invoke(main, asked).exit_code == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.bench_command.find_spec", lambda name: None)
    done = CliRunner().invoke(bench, ["--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert done.output == "Error: The pictures need matplotlib: pip install 'anaphora[bench]'.\n"
    assert not (tmp_path / "out").exists()


def test_the_report_says_where_and_how_it_was_measured(report: dict[str, Any]) -> None:
    assert report["machine"]["versions"].keys() >= {"anaphora", "torch", "openai"}
    assert report["load"].keys() == {"before", "after"}
    assert (report["run"]["kind"], report["run"]["seed"]) == ("tiny", 1)
    server, other = report["servers"]
    assert (server["model"], other["name"]) == ("fake", "other")
    assert server["traits"] == dict.fromkeys(("is_anaphora", "takes_salt", "ignores_eos", "says_cached"), True)


def test_five_cities_share_all_but_the_question(report: dict[str, Any]) -> None:
    found = results(report, "weather")
    first, *others = found["cached_tokens"]
    assert first == 0, "a round begins with an empty cache"
    assert all(cached > found["prompt_tokens"] * 0.7 for cached in others)
    assert found["found_without"] == 0, "a salt nobody has used"


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


def test_instead_of_prompts_that_are_too_long_the_longest_is_sent(
    report: dict[str, Any], server: RunningServer
) -> None:
    found, context = results(report, "scaling"), httpx.get(server.origin + "/v1/cache/layout").json()["max_model_len"]
    *_, longest = found["series"]["lengths"]
    assert found["refused"] == [] and len(found["series"]["lengths"]) == 3
    assert 0.9 * context < longest["prompt_tokens"] < context


def test_use_cases_share_what_they_say(report: dict[str, Any]) -> None:
    cases = results(report, "use_cases")["cases"]
    assert cases.keys() == {"products", "chat", "code", "agent"}
    shares = {name: [middle(row["cached_tokens"]) / middle(row["prompt_tokens"]) for row in of["requests"]]
              for name, of in cases.items()}  # fmt: skip
    assert shares["chat"] == sorted(shares["chat"]), "it rises with every turn"
    assert max(shares["products"][:3]) < 0.1, "nobody asked about these before"
    assert min(shares["products"][3:]) > 0.6
    assert shares["code"][1] > 0.8
    assert shares["agent"][1] > 0.5


def test_the_pool_counts_what_the_formula_says(report: dict[str, Any]) -> None:
    found = results(report, "memory")
    for row in found["counted"]:
        assert (row["shared"], row["apart"]) == (row["shared_formula"], row["apart_formula"])
    assert found["counted"][1]["apart"] > 2 * found["counted"][1]["shared"]


def test_the_workload_s_tokens_add_up_to_the_server_s_counters(report: dict[str, Any]) -> None:
    found = results(report, "manager")
    assert sum(row["prompt"] for row in found["requests"]) == found["counters"]["prefix_cache_queries"]
    assert sum(row["cached"] for row in found["requests"]) == found["counters"]["prefix_cache_hits"]
    assert {row["kind"] for row in found["requests"]} == {"new session", "next turn", "one-shot"}


def test_the_earlier_the_edit_the_less_is_found(report: dict[str, Any]) -> None:
    found = results(report, "sensitivity")
    cached = [middle(of["cached_tokens"]) for of in found["variants"].values()]
    assert cached == sorted(cached, reverse=True)
    assert found["said"]["nothing"]["class"] == "hit"
    parting = found["said"]["one character, in the middle"]["token"]
    assert set(found["variants"]["one character, in the middle"]["cached_tokens"]["samples"]) == {parting}, "each round"
    assert "messages[0].content changes with every request" in found["said"]["the date, near the beginning"]["advice"]


def test_trials_say_how_fast_replies_are(report: dict[str, Any]) -> None:
    found = results(report, "comprehensive")
    assert middle(found["uncached"]["cached_tokens"]) < 20 < middle(found["cached"]["cached_tokens"])
    assert found["cached"]["ttft_ms"]["n"] == TINY.trials
    assert middle(found["cached"]["tokens_per_s"]) > 0


def test_load_answers_every_request_and_replays_what_fits(report: dict[str, Any]) -> None:
    runs = results(report, "load")["runs"]
    assert {name: (run["requests"], run["errors"]) for name, run in runs.items()} == {
        "closed loop": (4, {}),
        "open loop": (4, {}),
        "trace": (3, {}),
    }
    trace = results(report, "load")["trace"]
    assert trace["left_out"] == 1, "longer than the model's context"
    assert 0.5 < runs["trace"]["cached_share"] < trace["best_share"] + 0.05
    assert runs["closed loop"]["by_turn"][1]["cached_share"] > 0.6


def test_peers_get_the_same_prompts(report: dict[str, Any]) -> None:
    servers = results(report, "peers")["servers"]
    ours, theirs = (servers[name]["figures"] for name in ("server", "other"))
    assert ours["prompt_tokens"]["samples"] == theirs["prompt_tokens"]["samples"]
    assert ours["warm_computed"]["samples"] == theirs["warm_computed"]["samples"]


def test_what_has_nothing_to_show_says_why(report: dict[str, Any]) -> None:
    assert "no KV" in report["studies"]["inspect"]["not_measured"], "the fake model has none"


def middle(stored: dict[str, Any]) -> float:
    return Spread.read(stored).median


def test_pictures_are_drawn_and_the_page_holds_them(report: dict[str, Any], pictures: dict[str, Path]) -> None:
    assert pictures.keys() == set(STUDY_NAMES) - {"inspect"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.values())
    page = html_report(report, pictures)
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|url\(|@import|<script|https?://(?!127\.0\.0\.1)""", page)
    for study in STUDIES.values():
        assert f'<h2 id="{study.name}">' in page


def test_a_column_of_sentences_wraps_and_keeps_its_spaces(report: dict[str, Any], pictures: dict[str, Path]) -> None:
    page = html_report(report, pictures)
    said = results(report, "sensitivity")["said"]["one space more, in the middle"]
    [row] = re.findall("<tr><td>one space more, in the middle</td><td>diverged</td>(.*?)</tr>", page)
    assert row.count('<td class="text">') == 2 and f"[{said['now'][:12]}]" in row and said["now"].startswith("  ")
    assert "pre-wrap" in page and "<code>--stable-first</code>" in page


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


def test_an_interrupt_ends_the_server_that_was_started(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proxy", "bench", "--quick", "--study", "weather", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            parent = psutil.Process(process.pid)
            eventually(lambda: bool(parent.children(recursive=True)), "a server is started")
            started = parent.children(recursive=True)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "Aborted!" in said
    eventually(lambda: not any(child.is_running() for child in started), "nothing of the run is left")
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.model
def test_a_server_of_its_own_tells_what_its_kv_looks_like(tmp_path: Path) -> None:
    arguments = ["--quick", "--study", "inspect", "--out", str(tmp_path)]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "results.json").read_text())
    layout = report["studies"]["inspect"]["results"]["layout"]
    assert {(layer["heads"], layer["kv_heads"], layer["head_dim"]) for layer in layout["layers"]} == {(9, 3, 64)}
    numbers = 30 * 3 * (64 + 64)
    assert (len(layout["layers"]), layout["bytes_per_token"]) == (30, numbers * 2), "K and V in float16"
    assert layout["pool_tokens"] * layout["bytes_per_token"] == layout["pool_bytes"]
    assert {path.name for path in tmp_path.iterdir()} == {"inspect.png", "report.html", "results.json"}
