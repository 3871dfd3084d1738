"""`anaphora explain` against a real server: what it prints, and what it says of files and servers it cannot use."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.__main__ import main
from tests.contract.conftest import RunningServer, running

SYSTEM = "Today is Tuesday. " + "Books are lent for four weeks. " * 4


def body(system: str, **more: Any) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Which?"}]
    return json.dumps({"messages": messages, **more})


def printed(result: Result) -> list[str]:
    """Without the log lines of the server, which runs in this process."""
    return [line for line in result.output.splitlines() if "[info" not in line]


def run(server: RunningServer, folder: Path, *files: str) -> Result:
    paths = []
    for number, text in enumerate(files):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(text)
    return CliRunner().invoke(main, ["explain", *map(str, paths), "--base-url", server.origin + "/v1"])


def test_two_requests_part_at_a_character(tmp_path: Path) -> None:
    with running() as server:
        result = run(server, tmp_path, body(SYSTEM.replace("Tuesday", "Sunday")), body(SYSTEM))
        assert result.exit_code == 0, result.output
        first, bar, *rest = printed(result)
        assert first.startswith("diverged") and "17 in the pool" in first and "█" in bar
        assert "at token 17, character 9 of messages[0].content:" in rest[0]
        assert "Today is Sunday" in rest[1] and "Tuesday" in rest[2]
        assert "A date at character 9 of messages[0].content changes" in rest[3]
        assert printed(run(server, tmp_path, body(SYSTEM), body(SYSTEM)))[0].startswith("hit")


def test_one_request_against_what_the_server_has(tmp_path: Path) -> None:
    with running() as server:
        assert printed(run(server, tmp_path, body("Never sent.")))[0].startswith("never_seen")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "0.json is not JSON"),
        ("[]", "0.json must hold a JSON object"),
        ('{"messages": []}', "messages"),
        (body("x", model="other"), "other"),
    ],
)
def test_a_file_that_is_no_request(tmp_path: Path, text: str, says: str) -> None:
    with running() as server:
        result = run(server, tmp_path, text)
        assert result.exit_code == 1 and says in result.output and "Traceback" not in result.output


def test_no_server(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(body("x"))
    result = CliRunner().invoke(main, ["explain", str(file), "--base-url", "http://127.0.0.1:9/v1"])
    assert result.exit_code == 1 and "No server answers at http://127.0.0.1:9/v1." in result.output
