"""Branches: what each operation leaves in which branch, and what is said of turns that are not there."""

import pytest

from proxy.terminal.branches import Branches, Message


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def three_turns() -> Branches:
    turns = [said(role, f"{role} {turn}") for turn in (1, 2, 3) for role in ("user", "assistant")]
    return Branches([said("system", "s"), *turns])


def contents(branches: Branches) -> list[str]:
    return [message["content"] for message in branches.messages]


def test_a_fork_has_all_up_to_the_end_of_a_turn_and_grows_alone() -> None:
    branches = three_turns()
    assert branches.fork(1) == 2
    assert contents(branches) == ["s", "user 1", "assistant 1"]
    branches.messages.append(said("user", "otherwise"))
    branches.switch(1)
    assert len(contents(branches)) == 7
    assert branches.fork() == 3 == branches.current
    assert contents(branches)[-1] == "assistant 3"
    assert branches.listed()[1] == "  2  2 turns  otherwise" and branches.listed()[2].startswith("* 3  3 turns  user 3")


def test_an_edit_is_a_new_branch_that_ends_with_the_new_question() -> None:
    branches = three_turns()
    assert branches.edit(2, "new") == 2
    assert contents(branches) == ["s", "user 1", "assistant 1", "new"]
    branches.abandon(1)
    assert contents(branches)[3] == "user 2" and len(branches.listed()) == 1


def test_what_was_sent_for_the_last_reply_and_taking_that_back() -> None:
    branches = three_turns()
    assert branches.request()[-1]["content"] == "user 3"
    assert [message["content"] for message in branches.take_back()] == ["assistant 3"]
    assert branches.take_back() == [] and contents(branches)[-1] == "user 3"


@pytest.mark.parametrize("turn", [0, 4])
def test_turns_and_branches_that_are_not_there(turn: int) -> None:
    branches = three_turns()
    for call in (branches.fork, lambda at: branches.edit(at, "x")):
        with pytest.raises(ValueError, match=f"There is no turn {turn}; this branch has 3"):
            call(turn)
    with pytest.raises(ValueError, match="There is no branch 2; there are 1"):
        branches.switch(2)
    assert branches.current == 1 and len(branches.listed()) == 1
