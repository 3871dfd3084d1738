"""Every command in README.md and docs/: run where it can be, and else at least meant; see `table.py`."""

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
import yaml

from proxy.__main__ import main
from proxy.listening import bind
from proxy.metrics import Metrics
from proxy.options import load_settings, variable_name
from proxy.settings import Settings
from sessions.reports import Stats
from tests.contract.conftest import eventually, running
from tests.docs.blocks import COMMANDS, DATA, PAGES, ROOT, SHELLS, Block, blocks, inline, is_typed
from tests.docs.table import TABLE
from tests.oracle import cache_dir

BLOCKS = blocks()
TYPED = [block for block in BLOCKS if block.language not in DATA or is_typed(block.text)]
SCRIPTS = [block for block in TYPED if block.language in SHELLS]
DOCUMENTED_ORIGIN = "http://127.0.0.1:8000"
START_TIMEOUT_S, TIMEOUT_S = 240.0, 120.0
VARIABLES = {variable_name(name): name for name in Settings.model_fields}
OTHERS_OPTIONS = {"--help", "--enable-prompt-tokens-details", "--enable-cache-report"}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def named(*how: str) -> list[object]:
    found = [block for block in TYPED if block.name in TABLE and TABLE[block.name].how in how]
    return [pytest.param(block, id=block.name) for block in found]


# -- a clone in which `make install` has run --


class Sandbox:
    """A folder that looks like one; its commands are this checkout's, its settings and cache folder its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = folder / ".venv" / "bin"
        tools.mkdir(parents=True)
        for name, module in (("python", ""), ("anaphora", " -m proxy")):
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
            (tools / name).chmod(0o755)
        (tools / "activate").write_text("")
        for name in ("Makefile", "pyproject.toml", "examples"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "cache").mkdir()
        for item in cache_dir().glob("*"):
            if item.name in ("models", "measured", "native"):
                (folder / "cache" / item.name).symlink_to(item)
        (folder / ".venv" / ".installed").write_text("")
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(("ANAPHORA_", "OPENAI_"))}
        self.environment = inherited | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(folder),
            "ANAPHORA_CACHE_DIR": str(folder / "cache"),
            "ANAPHORA_POOL_SIZE": "20000 tokens",
        }

    def run(self, block: Block, origin: str) -> subprocess.CompletedProcess[str]:
        script = block.script.replace(DOCUMENTED_ORIGIN, origin)
        script = re.sub(r"(examples/\w+\.py)", rf"\1 --base-url {origin}/v1", script)
        shell = ["bash", "-euo", "pipefail", "-c", script] if block.language in SHELLS else ["python", "-c", script]
        port = origin.rpartition(":")[2]
        return subprocess.run(
            shell, check=False, cwd=self.folder, input=TABLE[block.name].stdin, capture_output=True, text=True,
            timeout=TIMEOUT_S,
            env=self.environment | {"OPENAI_BASE_URL": origin + "/v1", "OPENAI_API_KEY": "none", "ANAPHORA_PORT": port},
        )  # fmt: skip


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def fake_origin() -> Iterator[str]:
    with running() as server:
        yield server.origin


@pytest.fixture(scope="module")
def model_origin(sandbox: Sandbox) -> Iterator[str]:
    """What README.md says to type first."""
    [block] = [block for block in TYPED if TABLE[block.name].how == "serve"]
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    log = sandbox.folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-ec", "exec " + block.script.strip()], cwd=sandbox.folder, stdout=output, stderr=output,
            env=sandbox.environment | {"ANAPHORA_PORT": str(port)}, start_new_session=True,
        )  # fmt: skip
    origin = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{origin}/ready").status_code == 200
        return False

    try:
        eventually(is_ready, "make serve is ready", START_TIMEOUT_S)
        yield origin
    finally:
        os.killpg(process.pid, 9)
        process.wait(TIMEOUT_S)


# -- every block is known --


def test_every_block_of_commands_is_in_the_table_and_the_other_way_round() -> None:
    names = [block.name for block in TYPED]
    assert len(names) == len(set(names)), "two blocks of a page begin alike"
    assert set(names) == set(TABLE)
    assert {block.language for block in TYPED} <= {*SHELLS, "python"}
    assert {block.language for block in BLOCKS} <= {*SHELLS, "python", *DATA}
    assert all(entry.reason for entry in TABLE.values() if entry.how == "parse")


@pytest.mark.parametrize("block", named("run"))
def test_it_runs(block: Block, sandbox: Sandbox, fake_origin: str) -> None:
    expect_well(sandbox.run(block, fake_origin))


@pytest.mark.model
@pytest.mark.parametrize("block", named("model"))
def test_it_runs_with_the_default_model(block: Block, sandbox: Sandbox, model_origin: str) -> None:
    expect_well(sandbox.run(block, model_origin))


def expect_well(ended: subprocess.CompletedProcess[str]) -> None:
    """curl ends well whatever the status is."""
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '"error":' not in ended.stdout, ended.stdout


# -- what cannot run is at least meant --


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: block.name)
def test_what_is_typed_exists(block: Block) -> None:
    subprocess.run(["bash", "-n", "-c", block.script], check=True)
    assert set(block.variables()) <= VARIABLES.keys()
    for words in block.commands():
        expect_meant(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_stands_between_backticks_exists(page: Path) -> None:
    for text in inline(page):
        if text.split()[0] in ("make", "anaphora", "python"):
            expect_meant(re.sub(r"<[^>]*>|…", "x", text).split())
        for variable in re.findall(r"\bANAPHORA_[A-Z_]+\b", text):
            assert variable in VARIABLES or variable == "ANAPHORA_PUBLISHED_PORT", variable
        for metric in re.findall(r"\banaphora_[a-z_]+\b", text):
            assert metric in exposed_metrics(), metric


def test_every_option_between_backticks_is_one_of_ours_or_said_to_be_anothers() -> None:
    context = click.Context(main)
    commands = [main.get_command(context, name) for name in main.list_commands(context)]
    ours = {option for command in commands if command for param in command.params for option in param.opts}
    for page in PAGES:
        for text in inline(page):
            if not text.startswith(("python -m benchmarks.", "benchmarks.")):
                found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
                assert found <= ours | OTHERS_OPTIONS, f"{page.name}: {text}"


def expect_meant(words: list[str]) -> None:
    """The command, its options and their values, its target, module or file, are there."""
    match words:
        case ["make", target, *_] if "=" not in target:
            assert re.search(rf"^{target}:.*## ", MAKEFILE, re.MULTILINE), target
        case ["anaphora", name, *rest] if not name.startswith("-"):
            expect_options(name, rest)
        case ["python" | ".venv/bin/python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None, module
        case ["python" | ".venv/bin/python", file, *_] if file.endswith(".py"):
            assert (ROOT / file).is_file(), file
        case ["docker", "compose", *rest]:
            services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
            assert set(rest[rest.index("up") + 1 :]) <= services.keys()


def expect_options(name: str, words: list[str]) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None, f"there is no anaphora {name}"
    options = {option: param for param in command.params if isinstance(param, click.Option) for option in param.opts}
    given: dict[str, str | None] = {}
    for at, word in enumerate(words):
        option, _, value = word.partition("=")
        if word.startswith("--"):
            assert option in options or option == "--help", f"anaphora {name} has no {option}"
            given[str(options[option].name) if option in options else ""] = value or next(
                iter(words[at + 1 : at + 2]), ""
            )
    if name == "serve" and all(given.values()):
        load_settings({field: text for field, text in given.items() if field in Settings.model_fields})


def exposed_metrics() -> set[str]:
    """Names as they are written, the series of histograms included."""
    names = set()
    for family in Metrics(Stats).registry.collect():
        endings = {"counter": ("_total",), "histogram": ("", "_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    return names


def test_json_blocks_are_json_and_yaml_blocks_yaml() -> None:
    for block in BLOCKS:
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text)
    assert "make" in COMMANDS
