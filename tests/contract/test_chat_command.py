"""`anaphora chat`: from a pipe at our own server, at a foreign one, and in a real terminal with Ctrl-C."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.__main__ import main
from tests.contract.conftest import DEADLINE_S, RunningServer, eventually

FIGURES = re.compile(r"^([\d,]+) prompt · ([\d,]+) cached · ([\d,]+) new · TTFT [\d,]+ ms", re.MULTILINE)
QUESTIONS = "Where is the library?\nAnd when is it open?\n"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def chat(origin: str, lines: str, *options: str) -> Result:
    command = ["chat", "--base-url", origin + "/v1", "--temperature", "0", "--max-tokens", "8", *options]
    return CliRunner().invoke(main, command, input=lines)


def notes(result: Result) -> list[str]:
    """Standard error, without the log lines of the server, which runs in this process."""
    return [line for line in result.stderr.splitlines() if "[info" not in line]


def figures(result: Result) -> list[tuple[int, int, int]]:
    found = FIGURES.findall("\n".join(notes(result)))
    return [(int(prompt), int(cached), int(new)) for prompt, cached, new in found]


def test_every_turn_says_what_was_cached_and_replies_stand_alone(server: RunningServer) -> None:
    result = chat(server.origin, QUESTIONS, "--system", "Be brief.")
    assert result.exit_code == 0, result.output
    (first, _, _), (second, cached, new) = figures(result)
    assert second > first and cached >= first and cached + new == second
    assert len([line for line in result.stdout.splitlines() if "prompt ·" in line]) == 0
    server.expect_idle()


def test_a_conversation_is_saved_loaded_and_explained(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    saved = chat(server.origin, f"{QUESTIONS}/save {file}\n", "--system", "Be brief.", "--seed", "7")
    body: dict[str, Any] = json.loads(file.read_text())
    assert [message["role"] for message in body["messages"]] == ["system", *["user", "assistant"] * 2]
    assert (body["model"], body["seed"], body["temperature"]) == ("fake", 7, 0)
    assert body["messages"][2]["content"] + "\n" in saved.stdout
    went_on = chat(server.origin, "Thanks.\n", "--load", str(file))
    [(_, cached, _)] = figures(went_on)
    assert cached >= figures(saved)[-1][0]
    explained = CliRunner().invoke(main, ["explain", str(file), "--base-url", server.origin + "/v1"])
    assert explained.exit_code == 0 and "prompt tokens" in explained.output


def test_forks_edits_and_regenerations_keep_what_they_share(server: RunningServer, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    lines = [
        "Where is it?", "When?", "/fork 1", "How far?", "/branches", f"/save {two}",
        "/switch 1", "/edit 1 Who is it?", "/regenerate", "/switch 1", f"/save {one}",
    ]  # fmt: skip
    result = chat(server.origin, "\n".join(lines))
    assert result.exit_code == 0, result.output
    told = notes(result)
    assert "branch 2, 1 turns" in told and "* 2  2 turns  How far?" in told and "branch 3" in told
    first, second = (json.loads(file.read_text())["messages"] for file in (one, two))
    assert first[:2] == second[:2] and (first[2]["content"], second[2]["content"]) == ("When?", "How far?")
    asked, again = figures(result)[-2:]
    assert again[0] == asked[0] and again[2] == 1, "the same question is all in the cache"


def test_explain_shows_the_last_request_and_one_to_come(server: RunningServer) -> None:
    result = chat(server.origin, "Where is the reading room?\n/explain\n/explain And the café?\n")
    told = notes(result)
    assert [line.split()[0] for line in told if "prompt tokens:" in line] == ["hit", "hit"]
    assert any("█" in line for line in told)


def test_text_of_several_lines_is_one_question(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    chat(server.origin, f'"""Two\nlines"""\n/save {file}\n')
    assert json.loads(file.read_text())["messages"][0]["content"] == "Two\nlines"


@pytest.mark.parametrize("text", ["/etc/hosts is what?", "/quit", "/fork"])
def test_what_begins_with_a_slash_is_said_between_quotes(server: RunningServer, tmp_path: Path, text: str) -> None:
    file = tmp_path / "saved.json"
    result = chat(server.origin, f'"""{text}"""\n/save {file}\n')
    assert result.exit_code == 0, result.output
    assert json.loads(file.read_text())["messages"][0]["content"] == text


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("/nothing\n", "There is no command /nothing; /help lists them"),
        ("/fork 3\n", "There is no turn 3; this branch has 0."),
        ("/edit x\n", "A number is wanted: /edit N TEXT."),
        ("/edit 1\n", "Say what to ask in its place"),
        ("/switch 9\n", "There is no branch 9; there are 1."),
        ("/save\n", "Say where to: /save FILE."),
        ("/save /proc/nope\n", "/proc/nope: "),
        ("/explain\n", "There is no turn 0"),
    ],
)
def test_a_wrong_command_is_one_sentence(server: RunningServer, lines: str, says: str) -> None:
    result = chat(server.origin, lines)
    assert result.exit_code == 1 and f"Error: {says}" in notes(result)[-1]


def test_what_cannot_be_loaded_or_reached_is_one_sentence(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    for text, says in (("{", "is not JSON"), ("[1]", "holds no conversation"), ("{}", "holds no conversation")):
        file.write_text(text)
        result = chat(server.origin, "", "--load", str(file))
        assert result.exit_code == 1 and says in result.output and "Traceback" not in result.output
    assert "No server answers at http://127.0.0.1:9/v1." in chat("http://127.0.0.1:9", "Hi\n").output
    wrong = chat(server.origin, "Hi\n", "--model", "other")
    assert wrong.exit_code == 1 and "The model 'other' does not exist" in wrong.output


# -- a server of somebody else's --


class Foreign(BaseHTTPRequestHandler):
    """Lists a model, says two pieces and, asked to wait, no more; explains nothing, and counts no cached tokens.

    What is asked to be answered once is refused from the second time on.
    """

    protocol_version = "HTTP/1.1"
    go_on = threading.Event()
    was_answered = threading.Event()

    def do_GET(self) -> None:
        self._answer(
            200, {"object": "list", "data": [{"id": "theirs", "object": "model", "created": 0, "owned_by": "x"}]}
        )

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.endswith("/chat/completions"):
            self._answer(404, {"detail": "Not Found"})
            return
        if "once" in asked["messages"][-1]["content"]:
            if self.was_answered.is_set():
                self._answer(500, {"error": {"message": "Not again."}})
                return
            self.was_answered.set()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for piece in ("One ", "two"):
            self._event(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
        if "wait" in asked["messages"][-1]["content"]:
            self.go_on.wait(DEADLINE_S)
            return
        if "break" in asked["messages"][-1]["content"]:
            self._event(error={"message": "Broken."})
            return
        self._event(choices=[], usage={"prompt_tokens": 1204, "completion_tokens": 2, "total_tokens": 1206})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, **fields: Any) -> None:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "theirs", **fields}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def foreign() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Foreign.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()
    Foreign.go_on.clear()
    Foreign.was_answered.clear()


def test_a_server_that_says_less(foreign: str) -> None:
    result = chat(foreign, "Hi\n/explain\n")
    assert result.exit_code == 0 and result.stdout == "One two\n"
    assert result.stderr.splitlines()[0].startswith("1,204 prompt · cached: not said · TTFT ")
    assert "This server does not explain its cache: it has no /v1/cache/explain." in result.stderr


def test_a_reply_that_breaks_off_ends_its_line(foreign: str) -> None:
    result = chat(foreign, "please break\n")
    assert result.exit_code == 1 and result.stdout == "One two\n" and "Error: Broken." in result.stderr


IN_A_SESSION_OF_ITS_OWN = (
    "import os, sys; os.login_tty(os.dup(0)); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
    """`anaphora chat` in a terminal of its own."""

    def __init__(self, origin: str) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-c", IN_A_SESSION_OF_ITS_OWN, "-m", "proxy", "chat", "--base-url", origin + "/v1"]
        environment = os.environ | {"TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.seen = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(self._ours, 4096):
                self.seen += piece.decode()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def expect(self, text: str) -> None:
        eventually(lambda: text in self.seen, f"{text!r} in {self.seen!r}", 60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        os.close(self._ours)


def test_ctrl_c_stops_a_reply_and_keeps_what_was_said(foreign: str, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    with contextlib.closing(Terminal(foreign)) as terminal:
        terminal.expect("1> ")
        terminal.type("please wait\n")
        terminal.expect("One two")
        terminal.type("\x03")
        terminal.expect("stopped · TTFT")
        terminal.expect("2> ")
        terminal.type("\x03")
        terminal.expect("Ctrl-D or /quit ends it.")
        terminal.type(f"/save {file}\n")
        terminal.expect("saved 2 messages")
        terminal.expect("2> ")
        terminal.seen = ""
        terminal.type("\x04")
        assert terminal.process.wait(DEADLINE_S) == 0
        eventually(lambda: terminal.seen.endswith("\n"), "the shell's prompt has a line of its own")
    assert [message["content"] for message in json.loads(file.read_text())["messages"]] == ["please wait", "One two"]


def test_what_the_server_refuses_leaves_the_conversation_as_it_was(foreign: str, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    with contextlib.closing(Terminal(foreign)) as terminal:
        terminal.expect("1> ")
        terminal.type("answer once\n")
        terminal.expect("1,204 prompt")
        for line in ("/regenerate", "/edit 1 only once", "once more"):
            terminal.seen = ""
            terminal.type(line + "\n")
            terminal.expect("Not again.")
            terminal.expect("2> ")
        terminal.type(f"/save {file}\n/quit\n")
        assert terminal.process.wait(DEADLINE_S) == 0
    assert [message["content"] for message in json.loads(file.read_text())["messages"]] == ["answer once", "One two"]
