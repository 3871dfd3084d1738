"""`anaphora doctor`: lines, JSON, exit codes; a whole run over a tiny model, and runs that fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.doctor_command import access, examine, line, port
from proxy.listening import bind
from proxy.settings import Settings
from sessions.doctor.finding import failure, fine
from tests.contract.conftest import running
from tests.fakes import byte_tokenizer_folder
from tests.integration.index.index_servers import free_port, scripted_server
from tests.oracle import SERVED, cache_dir, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(byte_tokenizer_folder(), folder, dirs_exist_ok=True)
    (folder / "config.json").unlink()
    tiny_model("llama", SERVED["llama"] | {"vocab_size": 258}).save_pretrained(folder)
    return folder


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """With the kernels that are compiled already."""
    (folder / "cache").mkdir(exist_ok=True)
    if not (folder / "cache" / "native").exists():
        (folder / "cache" / "native").symlink_to(cache_dir() / "native")
    command = [sys.executable, "-m", "proxy", "doctor", "--port", str(free_port()), "--pool-size", "9000 tokens"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANAPHORA_")}
    return subprocess.run(
        [*command, "--cache-dir", str(folder / "cache"), *options],
        check=False, capture_output=True, text=True, timeout=120, env=environment | {"XDG_RUNTIME_DIR": str(folder)},
    )  # fmt: skip


def test_a_machine_that_is_well(tmp_path: Path, model: Path) -> None:
    ended = run(tmp_path, "--model", str(model), "--device", "cpu", "--json")
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    verdicts = {check["check"]: check["verdict"] for check in report["checks"]}
    assert report["ok"] is True and set(verdicts.values()) <= {"fine", "warning"}, ended.stdout
    assert {"port", "access", "cache folder", "Redis", "clock", "device", "disk tier", "kernels"} <= verdicts.keys()
    assert {"tokenizer", "round trip", "control tokens", "streaming", "template", "model", "memory"} <= verdicts.keys()
    [found] = [check for check in report["checks"] if check["check"] == "model"]
    assert "2 layers" in found["figure"] and "within" in found["figure"]


def test_what_would_not_start_makes_the_exit_code_1(tmp_path: Path) -> None:
    ended = run(tmp_path, "--model", str(tmp_path), "--index", "off")
    assert ended.returncode == 1 and ended.stderr == ""
    *_, found, advice = ended.stdout.splitlines()
    assert found.startswith("✗ model") and "no config.json" in found and advice.strip().startswith("→ choose")
    assert run(tmp_path, "--port", "99999").returncode == 2


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        ({"shared_prompts": "nowhere.txt"}, "shared prompts"),
        ({"cache_dir": "/proc/nope"}, "cache folder"),
        ({"redis_url": "redis://127.0.0.1:9"}, "Redis"),
    ],
)
def test_wrong_settings_are_found(tmp_path: Path, wrong: dict[str, Any], check: str) -> None:
    settings = Settings(**({"port": 0, "model": str(tmp_path), "cache_dir": tmp_path} | wrong))
    assert next(finding.check for finding in examine(settings) if finding.verdict == "failure") == check


def test_a_port_in_use_and_by_whom() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        taken_port = taken.getsockname()[1]
    with running() as server:
        ours = port(Settings(port=server.port))
        assert ours.verdict == "warning" and "an Anaphora runs there" in ours.figure
    with scripted_server(taken_port, lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"):
        foreign = port(Settings(port=taken_port))
        assert foreign.verdict == "failure" and "in use" in foreign.figure
    assert port(Settings(port=taken_port)).verdict == "fine"
    assert port(Settings(host="a..b")).verdict == "failure"


def test_who_may_call() -> None:
    assert access(Settings()).verdict == "fine"
    assert access(Settings(host="0.0.0.0")).verdict == "warning"  # noqa: S104
    assert access(Settings(host="0.0.0.0", api_keys="a=k1,b=k2,a=k3")).figure == "API keys of 2 tenants"  # noqa: S104


def test_a_line_has_what_to_do_below_it() -> None:
    assert line(fine("port", "free")).endswith("port               free")
    assert line(failure("port", "taken", "wait.")).splitlines()[1].strip().endswith("wait.")
