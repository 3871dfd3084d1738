"""Truncation: which messages are left out, with numbers that can be counted on fingers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.truncation import at_most, cuts, leading, strides, truncated
from sessions.types import ChatRequest, Message

TURN = (Message("user", "a question"), Message("assistant", "an answer."))  # 20 characters


def talk(num_turns: int, *first: Message) -> ChatRequest:
    return ChatRequest((*first, *TURN * num_turns, Message("user", "the last q")))


def num_characters(request: ChatRequest) -> int:
    return sum(len(message.content) for message in request.messages)


async def cut_to(request: ChatRequest, limit: int, step: int) -> tuple[ChatRequest, int]:
    async def fits(shorter: ChatRequest) -> bool:
        return num_characters(shorter) <= limit

    return await truncated(request, fits, step=step)


async def test_what_fits_is_left_alone() -> None:
    request = talk(3)
    assert await cut_to(request, 70, step=40) == (request, 0)


async def test_the_cut_moves_in_strides_and_the_kept_part_begins_with_a_question() -> None:
    """Turns of 20 characters, strides of 40: the cut is at 0, 4, 8... messages, so every other turn keeps it."""
    dropped = [(await cut_to(talk(num_turns), 70, step=40))[1] for num_turns in range(3, 10)]
    assert dropped == [0, 4, 4, 8, 8, 12, 12]
    shorter, _ = await cut_to(talk(6), 70, step=40)
    assert shorter.messages[0].role == "user" and num_characters(shorter) == 50


async def test_instructions_stay() -> None:
    system = Message("system", "x" * 30)
    shorter, num_dropped = await cut_to(talk(6, system), 100, step=40)
    assert shorter.messages[0] == system and num_dropped == 6
    assert shorter.messages[1:] == talk(6).messages[6:]


async def test_where_no_stride_fits_the_last_question_is_tried_alone() -> None:
    shorter, num_dropped = await cut_to(talk(3), 15, step=1000)
    assert shorter.messages == (Message("user", "the last q"),) and num_dropped == 6


def test_so_many_messages_at_most_stay_and_the_cut_moves_in_strides() -> None:
    """Of eight messages, so in strides of two; every turn adds two."""
    system = Message("system", "s")
    for first in ((), (system,)):
        for num_turns in range(9):
            request = talk(num_turns, *first)
            kept, num_left_out = at_most(request.messages, 8)
            assert len(kept) == len(request.messages) - num_left_out <= 8
            assert num_left_out % 2 == 0 and kept[: len(first)] == first
            assert num_left_out == 0 or kept[len(first)].role == "user"
    long = [at_most(talk(num_turns).messages, 40)[1] for num_turns in range(20, 40)]
    assert set(long) == {10, 20, 30, 40}


def test_where_no_question_is_late_enough_all_messages_stay() -> None:
    messages = (Message("user", "q"), *[Message("assistant", "a")] * 9)
    assert at_most(messages, 8) == (messages, 0)


async def test_where_nothing_fits_the_shortest_is_given() -> None:
    assert (await cut_to(talk(3), 5, step=40))[0].messages == (Message("user", "the last q"),)
    alone = ChatRequest((Message("user", "x" * 100),))
    assert await cut_to(alone, 5, step=40) == (alone, 0)


@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_no_cut_parts_a_call_from_its_output(role: str) -> None:
    messages = (*TURN, Message("user", "q"), Message("assistant", "call"), Message("tool", "4"), Message("user", "q"))
    assert all(messages[at].role != role for at in cuts(messages))


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.integers(0, 60)), min_size=1, max_size=30))
def test_strides_are_cuts_and_stay_when_messages_are_added(written: list[tuple[str, int]]) -> None:
    messages = [Message(role, "x" * size) for role, size in written]  # type: ignore[arg-type]
    chosen = strides(messages, 50)
    assert set(chosen) <= set(cuts(messages))
    for count in range(len(messages)):
        assert strides(messages[:count], 50) == [at for at in chosen if at < count]


def test_leading_are_the_instructions_at_the_front() -> None:
    request = talk(1, Message("system", "a"), Message("developer", "b"))
    assert leading(request.messages) == 2
    assert leading(replace(request, messages=TURN).messages) == 0
    assert leading((Message("system", "a"),)) == 0
