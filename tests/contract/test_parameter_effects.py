"""What parameters of a chat completion do, where no other file shows it: taken is not enough.

Bias and penalties are the sampler's (`tests/unit/engine/`): the fake model has no logits to change.
"""

from typing import Any

import httpx
import pytest
from openai import OpenAI

from sessions.engine.retention import ONE_SHOT
from tests.contract.conftest import RunningServer
from tests.contract.rows import HELLO

ASKED: dict[str, Any] = {"model": "fake", "messages": HELLO, "max_tokens": 24}
FOREVER = {"ignore_eos": True}


def content(client: OpenAI, stream: bool, **values: Any) -> str:
    asked = ASKED | {"temperature": 0, "extra_body": FOREVER} | values
    if not stream:
        return client.chat.completions.create(**asked).choices[0].message.content or ""
    chunks = client.chat.completions.create(**asked, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_temperature_0_is_greedy_whatever_the_seed(client: OpenAI) -> None:
    answers = [content(client, False, seed=1), content(client, False, seed=2), content(client, False, seed=3)]
    assert len({*answers, content(client, True, temperature=1, top_p=0)}) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_tail_that_might_have_been_a_stop_is_said_at_the_end(client: OpenAI, stream: bool) -> None:
    whole = content(client, False)
    assert content(client, stream, stop=whole[-4:] + "c") == whole


def test_a_stop_never_leaks_its_beginning(client: OpenAI) -> None:
    whole = content(client, False)
    stop = whole[4:9]
    assert content(client, True, stop=stop) == whole[: whole.index(stop)]


def test_a_prompt_cache_key_does_not_split_the_cache(client: OpenAI) -> None:
    cached = []
    for key in ("one", "two"):
        asked = ASKED | {"messages": [{"role": "user", "content": "a prompt under several keys " * 4}]}
        usage = client.chat.completions.create(**asked, prompt_cache_key=key, user=key).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        cached.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
    assert cached[1][1] == cached[1][0] - 1


@pytest.mark.parametrize("priority", ["normal", "low"])
def test_of_a_group_that_came_back_nothing_is_a_one_shot(server: RunningServer, client: OpenAI, priority: str) -> None:
    """Blocks that nobody would miss, before and after: the first of a group leaves some, the second none."""

    def ask(number: int, **values: Any) -> int:
        before = one_shots()
        content = f"{number} of {priority} group and of nothing else {number}" * 3
        extra = FOREVER | {"anaphora": {"priority": priority}}
        client.chat.completions.create(
            **ASKED | {"messages": [{"role": "user", "content": content}]}, extra_body=extra, **values
        )
        server.expect_idle()
        return one_shots() - before

    def one_shots() -> int:
        pool = server.service.engine.scheduler.pool
        return server.on_loop(lambda: sum(block.is_registered and block.level == ONE_SHOT for block in pool.blocks))

    assert ask(1) > 0
    assert ask(2, prompt_cache_key=f"group {priority}") > 0
    returned = ask(3, prompt_cache_key=f"group {priority}")
    assert (returned > 0) == (priority == "low")
    assert ask(4, prompt_cache_key=f"another {priority}") > 0


@pytest.mark.parametrize("path", ["org/name", "org%2Fname"])
def test_an_unknown_name_with_slashes_is_a_model_that_is_not_found(server: RunningServer, path: str) -> None:
    answer = httpx.get(f"{server.origin}/v1/models/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
