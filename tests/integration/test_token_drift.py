"""Token-exact turns of the default model: whatever the temperature, no token of a reply is computed twice but its last.

Its replies, read back as text, now and then give other tokens: with splicing off the same conversations show it.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from transformers import AutoTokenizer

from sessions.model_folder import resolve_model
from sessions.startup import ServiceOptions, open_service
from tests.integration.test_conversation import serving
from tests.oracle import cache_dir

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEMPERATURES = (0.0, 0.7, 1.0)
NUM_TURNS = 3
SUBJECTS = (
    "a lighthouse in winter",
    "naïve café menus in Zürich",
    "the Python line `print({'a': [1, 2]})`",
    "東京 and 大阪",
    "prices like $3.99 and 1,024",
    "an emoji 🙂 and what it means",
    "a list of three rivers",
    "double  spaces   and tabs",
)
"""8 conversations x 3 turns x 3 temperatures are 72 replies."""


@pytest.fixture
async def client() -> AsyncIterator[AsyncOpenAI]:
    options = ServiceOptions(cache_dir(), pool_size="30000 tokens", index="off", num_draft_tokens=0)
    async with serving(await open_service(options)) as (client, _):
        yield client


class Glue:
    """Counts the tokens that a question adds after a reply, as transformers does."""

    def __init__(self) -> None:
        folder: Path = resolve_model("default", cache_dir(), lambda _: None).path
        self._encode = AutoTokenizer.from_pretrained(folder).encode

    def num_tokens(self, question: str) -> int:
        text = f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        return len(self._encode(text, add_special_tokens=False))


@dataclass
class Talk:
    """One conversation. recomputed: per turn after the first, tokens computed that were not new."""

    recomputed: list[int]
    num_spliced: int


async def talk(client: AsyncOpenAI, glue: Glue, subject: str, options: dict[str, Any], **more: Any) -> Talk:
    messages: list[Any] = [{"role": "user", "content": f"Write about {subject}, with examples."}]
    recomputed, spliced = [], 0
    for number in range(NUM_TURNS + 1):
        reply = await client.chat.completions.create(
            model="SmolLM2-135M-Instruct", messages=messages, max_tokens=32, extra_body=more or None, **options
        )
        usage, question = reply.usage, f"Go on, part {number + 2}: what about {subject}?"
        if number:
            new = glue.num_tokens(messages[-1]["content"])
            recomputed.append(usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens - new)
        spliced = reply.anaphora["spliced_messages"]
        messages += [
            {"role": "assistant", "content": reply.choices[0].message.content},
            {"role": "user", "content": question},
        ]
    return Talk(recomputed, spliced)


async def test_no_turn_recomputes_more_than_one_token(client: AsyncOpenAI) -> None:
    glue = Glue()
    for temperature in TEMPERATURES:
        options = {"temperature": temperature, "seed": 5}
        talks = await asyncio.gather(*(talk(client, glue, subject, options) for subject in SUBJECTS))
        assert [talk.num_spliced for talk in talks] == [NUM_TURNS] * len(SUBJECTS)
        assert max(max(talk.recomputed) for talk in talks) <= 1, temperature
        unspliced = {"anaphora": {"splice": False}, "cache_salt": "read back"}
        lossy = await asyncio.gather(*(talk(client, glue, subject, options, **unspliced) for subject in SUBJECTS))
        drifted = sum(count > 1 for talk in lossy for count in talk.recomputed)
        lost = sum(max(0, count - 1) for talk in lossy for count in talk.recomputed)
        print(f"temperature {temperature}: read back, {drifted} of {NUM_TURNS * len(SUBJECTS)} lose, {lost} tokens")
        if temperature == 1.0:
            assert drifted


async def test_any_of_several_choices_can_be_continued(client: AsyncOpenAI) -> None:
    glue = Glue()
    messages: list[Any] = [{"role": "user", "content": "Name a river and say why."}]
    reply = await client.chat.completions.create(
        model="SmolLM2-135M-Instruct", messages=messages, max_tokens=24, n=4, temperature=1, seed=3
    )
    assert len({choice.message.content for choice in reply.choices}) > 1
    for index in (2, 0, 3, 1):
        said = {"role": "assistant", "content": reply.choices[index].message.content}
        question = {"role": "user", "content": "Another one?"}
        second = await client.chat.completions.create(
            model="SmolLM2-135M-Instruct", messages=[*messages, said, question], max_tokens=1
        )
        usage = second.usage
        new = glue.num_tokens(question["content"])
        assert usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens - new <= 1, index
