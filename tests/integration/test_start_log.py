"""The first log lines of a real child process: the index is never called down before it was heard."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.listening import bind
from tests.contract.conftest import DEADLINE_S

CHILD = """
import sys
from proxy import logs
from proxy.listening import bind
from proxy.server import Server
from proxy.settings import Settings
from sessions.parts import IndexOptions
from tests.fakes import open_fake_service

logs.configure("info", "json")
index = IndexOptions(sys.argv[1], sys.argv[2])
Server(Settings(), lambda _: open_fake_service(index=index)).run(sockets=[bind("127.0.0.1", 0)])
"""


BARS = """
from proxy import logs

logs.configure("info", "console")
from transformers.modeling_gguf_pytorch_utils import tqdm
from transformers.utils.logging import tqdm as theirs

list(tqdm([1], desc="Converting")), list(theirs([1], desc="Loading"))
"""


def test_no_library_draws_bars_into_a_log() -> None:
    """They are no lines, let alone JSON."""
    done = subprocess.run([sys.executable, "-c", BARS], check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_the_first_line_is_a_line_of_the_log(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "proxy",
        "serve",
        "--model",
        "./no-such.gguf",
        "--log-format",
        "json",
        "--port",
        "0",
    ]
    done = subprocess.run([*command, "--cache-dir", str(tmp_path)], check=False, capture_output=True, text=True)
    first, *_, last = done.stderr.splitlines()
    assert (json.loads(first)["event"], json.loads(first)["model"]) == ("loading the model", "./no-such.gguf")
    assert last.startswith("Error: ")


@contextmanager
def started(mode: str, url: str = "") -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """A function that reads the child's log up to the first line whose event begins with a text."""
    with subprocess.Popen([sys.executable, "-c", CHILD, mode, url], stderr=subprocess.PIPE, text=True) as child:
        errors = child.stderr
        assert errors is not None

        def read_until(event: str) -> list[dict[str, Any]]:
            records = []
            for line in errors:
                records.append(json.loads(line))
                if records[-1]["event"].startswith(event):
                    return records
            raise AssertionError(f"the child ended before '{event}'")

        deadline = threading.Timer(DEADLINE_S, child.kill)
        deadline.start()
        try:
            yield read_until
        finally:
            deadline.cancel()
            child.terminate()
            child.communicate(timeout=DEADLINE_S)


def named(records: list[dict[str, Any]], event: str) -> dict[str, Any]:
    [record] = [record for record in records if record["event"] == event]
    return record


def test_an_index_that_comes_up_is_never_called_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with started("embedded") as read_until:
        records = read_until("index is up")
        if "serving" not in [record["event"] for record in records]:
            records += read_until("serving")
    assert named(records, "serving")["index"] in ("connecting", "embedded")
    assert "down" not in json.dumps(records)


def test_an_index_that_is_absent_at_start_is_said_to_be_down_once_that_is_known() -> None:
    with bind("127.0.0.1", 0) as unserved:
        url = f"redis://127.0.0.1:{unserved.getsockname()[1]}"
        with started("redis", url) as read_until:
            records = read_until("index is down")
    assert named(records, "serving")["index"] in ("connecting", "down")
    assert records[-1]["level"] == "warning"


def test_an_index_that_is_off_is_said_to_be_off() -> None:
    with started("off") as read_until:
        assert read_until("serving")[-1]["index"] == "off"
