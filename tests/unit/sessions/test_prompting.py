"""Prompting: what is refused at once, what is encoded off the event loop, and where breakpoints stand in tokens."""

import time

import pytest

from sessions.conversation import canonical
from sessions.engine.drops import Drops
from sessions.errors import ContextLengthExceeded
from sessions.hashing import HashChain
from sessions.index import PrefixIndex
from sessions.prompting import LONG_PROMPT_CHARACTERS, Prompted, Prompter, _is_long
from sessions.replies import Replies
from sessions.types import BlockHash, Breakpoint, ChatRequest, Message, Part, SamplingParams, Tool
from tests.fakes import byte_tokenizer, open_fake_service

ROOT = BlockHash(b"r" * 16)

QUESTION = (Message("user", "hi"),)
LONG = "x" * LONG_PROMPT_CHARACTERS


def ask(messages: tuple[Message, ...] = QUESTION, tools: tuple[Tool, ...] = (), prediction: str = "") -> ChatRequest:
    return ChatRequest(messages=messages, params=SamplingParams(), tools=tools, prediction=prediction)


@pytest.mark.parametrize(
    ("request_", "is_long"),
    [
        (ask(), False),
        (ask(tools=(Tool("f", "short", {"type": "object", "required": ["a"]}),)), False),
        (ask((*QUESTION, Message("user", LONG))), True),
        (ask((Message("user"),) * 10_000), True),
        (ask(prediction=LONG), True),
        (ask(tools=(Tool("f", LONG),)), True),
        (ask(tools=(Tool("f", None, {"properties": {"a": {"enum": ["b", LONG]}}}),)), True),
        (ask(tools=(Tool("f", None, {"properties": {LONG: {}}}),)), True),
    ],
)
def test_whatever_makes_a_prompt_long_takes_it_off_the_event_loop(request_: ChatRequest, is_long: bool) -> None:
    assert _is_long(request_, canonical(request_.messages, ()).turns) == is_long


async def test_more_messages_than_tokens_are_refused_without_rendering_them() -> None:
    service = await open_fake_service(max_model_len=200)
    try:
        began = time.monotonic()
        with pytest.raises(ContextLengthExceeded, match="at least 340000"):
            await service.start(ask((Message("user"),) * 340_000))
        assert time.monotonic() - began < 1
    finally:
        await service.close()


def marked(role: str, *texts: str) -> Message:
    """A part per text; those that end in `|` have a breakpoint there. The bar is part of the text."""
    parts, at = [], 0
    for text in texts:
        parts.append(Part(at, at + len(text), Breakpoint(60.0) if text.endswith("|") else None))
        at += len(text)
    return Message(role, "".join(texts), parts=tuple(parts))  # type: ignore[arg-type]


async def prompted(*messages: Message, stable_first: bool = False) -> tuple[Prompted, str]:
    """And the text before each breakpoint, joined by newlines twice."""
    tokenizer = byte_tokenizer()
    index = PrefixIndex(None, fleet=ROOT, resync_source=lambda: [])
    replies = Replies(tokenizer.decode, tokenizer.control_ids, index, vocab_size=tokenizer.vocab_size, drops=Drops())
    prompter = Prompter(
        tokenizer, replies, lambda *_: ROOT, block_size=4, max_model_len=10_000, stable_first=stable_first
    )
    result = await prompter.prompt(ask(messages))
    chain = HashChain(ROOT, 4)
    chain.extend(result.token_ids)
    assert chain.hashes == result.chain.hashes
    decode = tokenizer._backend.decode
    return result, "\n\n".join(
        decode(result.token_ids[:count], skip_special_tokens=False) for count, _ in result.breakpoints
    )


async def test_breakpoints_stand_at_the_exact_token() -> None:
    messages = marked("system", "Be kind.|", " Today is Tuesday."), marked("user", "A file:|", "and a question")
    result, text = await prompted(*messages)
    assert text == (
        "<|im_start|>system\nBe kind.|\n\n"
        "<|im_start|>system\nBe kind.| Today is Tuesday.<|im_end|>\n<|im_start|>user\nA file:|"
    )
    plain, _ = await prompted(*(Message(message.role, message.content) for message in messages))
    assert plain.token_ids == result.token_ids and plain.breakpoints == ()


async def test_breakpoints_follow_what_moves() -> None:
    late = marked("system", "Rules.|")
    _, text = await prompted(Message("user", "Hi"), late)
    assert text == "<|im_start|>system\nRules.|"
    messages = marked("system", "Date.", "Rules.|"), Message("user", "Hi")
    _, text = await prompted(*messages, stable_first=True)
    assert text == "<|im_start|>system\nRules.|"


async def test_a_breakpoint_inside_a_code_point_s_tokens_stands_before_it() -> None:
    """A token is a byte here, so the two parts of the text are 3 tokens and 4."""
    result, _ = await prompted(marked("user", "\N{EURO SIGN}|", "\N{GRINNING FACE}"))
    ((count, _),) = result.breakpoints
    assert count == len("<user\n") + 3 + 1


async def test_a_breakpoint_at_the_end_of_a_reply_stands_before_what_ends_it() -> None:
    _, text = await prompted(Message("user", "Hi"), marked("assistant", "Hello.|"), Message("user", "And?"))
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.|"


async def test_a_blank_marked_part_leaves_the_other_breakpoints() -> None:
    _, text = await prompted(marked("system", "Rules.|"), Message("user", " ", parts=(Part(0, 1, Breakpoint()),)))
    assert text == "<|im_start|>system\nRules.|"
