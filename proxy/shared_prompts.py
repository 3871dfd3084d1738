"""Shared prompts: the files that an operator names with `--shared-prompts`, into values. Reads files.

A text file is the system prompt itself, without the line end that ends the file. A `.json` file holds a list of
messages, or an object with `messages` and, if wanted, `tools`: as a chat completion's body has them.
"""

import json
from pathlib import Path

from proxy.body import decode_chat_request
from proxy.settings import Settings
from proxy.translate import chat_request
from sessions.errors import InvalidRequest
from sessions.types import Message, SharedPrompt, Tenant

_ANY_VOCABULARY = 2**31


def read_shared_prompts(settings: Settings) -> tuple[SharedPrompt, ...]:
    """Raises OSError, and ValueError that names the file and what is wrong with it."""
    return tuple(_read(path, settings) for path in settings.shared_prompt_files)


def _read(path: Path, settings: Settings) -> SharedPrompt:
    try:
        text = path.read_text(encoding="utf-8")
        return _of_json(text, settings) if path.suffix == ".json" else _of_text(text)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    except (ValueError, InvalidRequest) as error:
        raise ValueError(f"{path} cannot be shared: {str(error).rstrip('.')}") from None


def _of_text(text: str) -> SharedPrompt:
    if not text.strip():
        raise ValueError("it is empty")
    return SharedPrompt((Message("system", text.removesuffix("\n")),))


def _of_json(text: str, settings: Settings) -> SharedPrompt:
    body = json.loads(text)
    if isinstance(body, list):
        body = {"messages": body}
    if not isinstance(body, dict):
        raise ValueError("it holds neither a list of messages nor an object")
    wire = decode_chat_request(
        json.dumps({"model": "any"} | body).encode(),
        max_depth=settings.max_json_depth,
        max_messages=settings.max_messages,
    )
    asked = chat_request(wire, tenant=Tenant(), max_n=settings.max_n, vocab_size=_ANY_VOCABULARY)
    return SharedPrompt(asked.messages, asked.tools)
