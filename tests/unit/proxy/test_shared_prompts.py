"""Files of shared prompts: what they mean, and one sentence for each that cannot be meant."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.__main__ import main
from proxy.settings import Settings
from proxy.shared_prompts import read_shared_prompts
from sessions.errors import ModelRefused
from sessions.types import Message, SharedPrompt
from tests.fakes import open_fake_service

MESSAGES = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


def test_text_is_a_system_prompt_and_json_is_messages(tmp_path: Path) -> None:
    text, listed, body = tmp_path / "a.md", tmp_path / "b.json", tmp_path / "c.json"
    text.write_text("Be terse.\n\n", "utf-8")
    listed.write_text(json.dumps(MESSAGES), "utf-8")
    body.write_text(json.dumps({"model": "m", "messages": MESSAGES[:1]}), "utf-8")
    settings = Settings(shared_prompts=f"{text}, {listed},{body},")
    assert read_shared_prompts(settings) == (
        SharedPrompt((Message("system", "Be terse.\n"),)),
        SharedPrompt((Message("system", "Be terse."), Message("user", "Hi"))),
        SharedPrompt((Message("system", "Be terse."),)),
    )
    assert read_shared_prompts(Settings()) == ()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "it is empty"),
        ("a.txt", b"\xff\xfe", "is not text in UTF-8"),
        ("a.json", b"{", "cannot be shared"),
        ("a.json", b"3", "neither a list of messages nor an object"),
        ("a.json", b"[]", "messages"),
        ("a.json", b'[{"role": "robot", "content": ""}]', "messages[0].role"),
        ("a.json", b'{"messages": [{"role": "user", "content": "x"}], "n": "two"}', "'n'"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_sentence_and_exit_code_2(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    result = CliRunner().invoke(main, ["serve", "--shared-prompts", str(file), "--cache-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: --shared-prompts: {file} ") and said in result.output


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "--shared-prompts", str(tmp_path / "no.txt")])
    assert result.exit_code == 2 and "no.txt: No such file" in result.output


async def test_a_prompt_longer_than_the_context_is_refused_at_start() -> None:
    with pytest.raises(ModelRefused, match=r"Shared prompt 1 is none for this model: .*context length"):
        await open_fake_service(num_blocks=8, shared_prompts=[SharedPrompt((Message("system", "x" * 4000),))])
