"""An agent's requests, replayed: what an unsteady client costs in cached tokens: `python -m benchmarks.agent`.

An agent sends its rules, its tools and all that was said so far with every request. What means the same is often not
written the same: tools come out of a set, JSON out of a dict, and the system message says what time it is. A row is one
such habit; its columns are shares of all prompt tokens that were cached, the first request's included:

    as sent      the most that any prefix cache can share of the prompts rendered in the order they were sent
    here         a real ChatService: canonical order, replies spliced, real pool and scheduler, no model behind them
    stable first the same with `--stable-first`

Nothing is timed, so a busy machine does not matter; a run repeats by its seed.
"""

import asyncio
import json
import random
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.instant_runner import InstantRunner
from benchmarks.model import model_folder
from benchmarks.report import print_table
from benchmarks.words import WordSource
from sessions.conversation import Conversation, Turn
from sessions.engine.config import EngineConfig
from sessions.hashing import RootFields
from sessions.parts import ServiceParts
from sessions.render import render
from sessions.service import ChatService
from sessions.tokenizer import Tokenizer
from sessions.types import Breakpoint, ChatRequest, Message, Part, SamplingParams, Tool

TEMPLATE: Final = (
    "{% if tools %}{{ '<|im_start|>tools\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML with tools at the front, as most models that take tools have it; the default model's has no place for them."""

NUM_TOOLS: Final = 8
RULES_WORDS: Final = 400
RESULT_WORDS: Final = 80
REPLY_TOKENS: Final = 24
POINT: Final = Breakpoint()


@dataclass(frozen=True, slots=True)
class Habit:
    """How a client writes what it means. clock: where the time stands, which is another with every request."""

    permutes_tools: bool = False
    shuffles_keys: bool = False
    clock: str = "none"
    """none; before the rules; before marked rules; after marked rules; in the last message."""


HABITS: Final = {
    "the same bytes each time": Habit(),
    "tools permuted": Habit(permutes_tools=True),
    "JSON keys shuffled": Habit(shuffles_keys=True),
    "both": Habit(permutes_tools=True, shuffles_keys=True),
    "both, time before the rules": Habit(True, True, "before"),
    "both, time before the rules, a breakpoint after them": Habit(True, True, "before marked"),
    "both, time after the rules and their breakpoint": Habit(True, True, "after marked"),
    "both, time in the newest message": Habit(True, True, "in the last"),
}


class Agent:
    """The requests of one run; `reply` is what the model said to the last of them."""

    def __init__(self, habit: Habit, seed: int) -> None:
        self._habit = habit
        self._words = WordSource(seed)
        self._random = random.Random(seed)  # noqa: S311
        self._rules = self._words.take(RULES_WORDS)
        self._tools = [self._tool(number) for number in range(NUM_TOOLS)]
        self._said: list[Message] = [Message("user", self._words.take(RESULT_WORDS))]
        self._minute = 0

    def request(self) -> ChatRequest:
        """What is sent now, and in which order."""
        self._minute += 1
        clock = f"It is 2026-11-24, {self._minute // 60 + 9:02}:{self._minute % 60:02}. "
        said = list(self._said)
        if self._habit.clock == "in the last":
            said[-1] = said[-1]._replace(content=f"{said[-1].content} {clock}")
            self._said = said
        messages = (self._system(clock), *said)
        return ChatRequest(messages, SamplingParams(temperature=0, max_tokens=REPLY_TOKENS), tools=self._sent_tools())

    def heard(self, reply: str) -> None:
        """The model called for something, and here is what came of it."""
        self._said += [Message("assistant", reply), Message("tool", self._words.take(RESULT_WORDS))]

    def _system(self, clock: str) -> Message:
        rules = self._rules + "\n"
        match self._habit.clock:
            case "before":
                return Message("system", clock + rules)
            case "before marked":
                parts = (Part(0, len(clock)), Part(len(clock), len(clock + rules), POINT))
                return Message("system", clock + rules, parts=parts)
            case "after marked":
                parts = (Part(0, len(rules), POINT), Part(len(rules), len(rules + clock)))
                return Message("system", rules + clock, parts=parts)
            case _:
                return Message("system", rules)

    def _sent_tools(self) -> tuple[Tool, ...]:
        order = self._random.sample(self._tools, NUM_TOOLS) if self._habit.permutes_tools else self._tools
        if not self._habit.shuffles_keys:
            return tuple(order)
        return tuple(replace(tool, parameters=self._shuffled(tool.parameters)) for tool in order)

    def _shuffled(self, value: Any) -> Any:
        """The same JSON, its keys in another order."""
        if not isinstance(value, dict):
            return value
        return {key: self._shuffled(value[key]) for key in self._random.sample(sorted(value), len(value))}

    def _tool(self, number: int) -> Tool:
        names = self._words.take(4).lower().strip(".").split()
        properties = {name: {"type": "string", "description": self._words.take(8)} for name in names}
        parameters = {"type": "object", "properties": properties, "required": sorted(properties)}
        return Tool(f"{names[0]}_{number}", self._words.take(12), parameters)


class AsSent:
    """What any prefix cache could share of prompts in the order in which they come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: list[array[int]] = []

    def share(self, request: ChatRequest) -> tuple[int, int]:
        """(tokens that some earlier prompt begins with too, all tokens of this one)."""
        prompt = render(_verbatim(request), self._tokenizer.template)
        ids = array("I", self._tokenizer.encode(prompt))
        shared = max((_num_common(ids, other) for other in self._seen), default=0)
        self._seen.append(ids)
        return min(shared, len(ids) - 1), len(ids)


def _verbatim(request: ChatRequest) -> Conversation:
    """Nothing moved, no key sorted."""
    schemas = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in request.tools
    ]
    turns = tuple(Turn(message.role, message.content) for message in request.messages)
    return Conversation(turns, tuple(range(len(turns))), schemas)


def _num_common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ours), len(theirs)))


@contextmanager
def tokenizer_with_tools(folder: Path) -> Iterator[Callable[[], Tokenizer]]:
    """Of a model, with a chat template that has a place for tools."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in folder.iterdir():
            if file.suffix == ".json" and file.stat().st_size < 2**26:
                shutil.copy(file, copy)
        config_path = copy / "tokenizer_config.json"
        config = json.loads(config_path.read_text("utf-8")) | {"chat_template": TEMPLATE}
        config_path.write_text(json.dumps(config), "utf-8")
        yield lambda: Tokenizer.load(copy)


def open_service(tokenizer: Tokenizer, *, stable_first: bool) -> ChatService:
    """On the running loop. A model that always says the same word; everything before it is real."""
    config = EngineConfig(num_blocks=8192, max_model_len=65_536)
    fields = RootFields(config.block_size, "", "", "none", "", "", "benchmark", tokenizer.digest, "")
    word = next(token for token in range(tokenizer.vocab_size) if tokenizer.decode([token]).isalpha())
    parts = ServiceParts("model", tokenizer, config, fields, bytes(32), 0, stable_first=stable_first)
    service = ChatService(parts, InstantRunner(word))
    service.open()
    return service


async def cached_share(service: ChatService, agent: Agent, num_requests: int, salt: str) -> float:
    """Of all prompt tokens of a run, which finds nothing of runs with other salts."""
    cached = total = 0
    for _ in range(num_requests):
        generation = await service.start(replace(agent.request(), cache_salt=salt))
        agent.heard("".join([delta.text async for delta in generation]))
        generation.close()
        usage = generation.usage()
        cached, total = cached + usage.cached_tokens, total + usage.prompt_tokens
    return cached / total


def share_as_sent(tokenizer: Tokenizer, agent: Agent, num_requests: int) -> float:
    as_sent, shared, total = AsSent(tokenizer), 0, 0
    for _ in range(num_requests):
        request = agent.request()
        agent.heard("Done.")
        found, num_tokens = as_sent.share(request)
        shared, total = shared + found, total + num_tokens
    return shared / total


async def measure(load_tokenizer: Callable[[], Tokenizer], num_requests: int, seed: int) -> dict[str, list[float]]:
    """By habit: share as sent, here, and here with `stable_first`."""
    tokenizer = load_tokenizer()
    services = [open_service(tokenizer, stable_first=stable_first) for stable_first in (False, True)]
    try:
        return {
            name: [
                share_as_sent(tokenizer, Agent(habit, seed), num_requests),
                *[await cached_share(service, Agent(habit, seed), num_requests, name) for service in services],
            ]
            for name, habit in HABITS.items()
        }
    finally:
        for service in services:
            await service.close()


@click.command()
@click.option("--model", default="default", show_default=True, help="Whose tokenizer.")
@click.option("--requests", default=12, show_default=True, help="Requests of one run of the agent.")
@click.option("--seed", default=0, show_default=True)
def main(model: str, requests: int, seed: int) -> None:
    """Cached share of an agent's prompt tokens, by how its client writes them."""
    with tokenizer_with_tools(model_folder(model)) as load:
        shares = asyncio.run(measure(load, requests, seed))
    print(f"an agent of {requests} requests, {NUM_TOOLS} tools, tokenizer of {model}; cached share of its prompts")
    print_table(
        ["the client sends", "as sent, at best", "here", "here, stable first"],
        [[name, *(f"{share:.1%}" for share in row)] for name, row in shares.items()],
    )


if __name__ == "__main__":
    main()
