"""A conversation that goes on is what canonical order makes of all of it, or is not taken for one that goes on."""

from dataclasses import replace

from hypothesis import event, given
from hypothesis import strategies as st

from sessions.conversation import canonical, continued
from sessions.types import Breakpoint, Message, Part, Tool, ToolCall

texts = st.sampled_from(["", "a", " b\n", "c"])
calls = st.builds(ToolCall, st.sampled_from("xyz"), st.sampled_from("fg"), st.sampled_from(['{"b": 1, "a": 2}', "?"]))
parts = st.sampled_from([(), (), (), (Part(0, 0, Breakpoint()),)])
others = st.sampled_from(["system", "developer", "user"]).flatmap(
    lambda role: st.tuples(texts, parts).map(lambda pair: Message(role, pair[0], parts=pair[1]))  # type: ignore[arg-type]
)
replies = st.tuples(texts, st.lists(calls, max_size=2), texts).map(
    lambda said: Message("assistant", said[0], tool_calls=tuple(said[1]), reasoning=said[2])
)
results = st.tuples(texts, st.sampled_from("wxyz")).map(lambda pair: Message("tool", *pair))
messages_of = st.lists(st.one_of(others, replies, results), min_size=1, max_size=8).map(tuple)
TOOLS = (Tool("g"), Tool("f", "does f", {"b": [1, 2], "a": {}}))


@given(messages_of, messages_of, st.booleans())
def test_what_goes_on_is_what_all_of_it_would_be(
    messages: tuple[Message, ...], more: tuple[Message, ...], stable_first: bool
) -> None:
    before = canonical(messages, TOOLS, stable_first=stable_first, options=(("o", 1),))
    found = continued(before, messages + more, TOOLS, (("o", 1),))
    event("goes on" if found else "does not")
    assert found in (None, canonical(messages + more, TOOLS, stable_first=stable_first, options=(("o", 1),)))
    is_plain = not any(message.parts for message in messages + more)
    assert found is not None or more[0].role != "assistant" or not is_plain


@given(messages_of, messages_of, st.data())
def test_another_beginning_other_tools_or_options_do_not_go_on(
    messages: tuple[Message, ...], more: tuple[Message, ...], data: st.DataObject
) -> None:
    before = canonical(messages, TOOLS)
    more = (Message("assistant", "Hello."), *more)
    at = data.draw(st.integers(0, len(messages) - 1))
    edited = messages[at]._replace(content=messages[at].content + "!")
    assert continued(before, (*messages[:at], edited, *messages[at + 1 :], *more), TOOLS, ()) is None
    assert continued(before, (*messages[1:], *more), TOOLS, ()) is None
    assert continued(before, messages, TOOLS, ()) is None
    assert continued(before, messages + more, TOOLS[::-1], ()) is None
    assert continued(before, messages + more, TOOLS, (("o", 1),)) is None
    written_otherwise = (TOOLS[0], replace(TOOLS[1], parameters={"b": [True, 2], "a": {}}))
    assert written_otherwise == TOOLS
    assert continued(before, messages + more, written_otherwise, ()) is None
