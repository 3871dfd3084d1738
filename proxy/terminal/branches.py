"""Branches: conversations that share a beginning. Pure.

    turn        1                 2                 3
    branch 1    user ─ assistant ─ user ─ assistant ─ user ─ assistant
    branch 2                     └ user ─ assistant              forked after turn 1

Turns and branches are counted from 1. Whoever names one that is not there gets a ValueError with one sentence.
"""

from typing import Any

Message = dict[str, Any]


class Branches:
    """One of them is the current one. messages: how the first one begins."""

    def __init__(self, messages: list[Message]) -> None:
        self._branches = [list(messages)]
        self.current = 1

    @property
    def messages(self) -> list[Message]:
        """Of the current branch."""
        return self._branches[self.current - 1]

    @property
    def num_turns(self) -> int:
        return len(_questions(self.messages))

    def fork(self, turn: int | None = None) -> int:
        """A new branch that has all of this one up to the end of `turn`; it is the current one now. Its number."""
        after = len(self.messages)
        if turn is not None:
            self._place(turn)
            after = self._place(turn + 1) if turn < self.num_turns else after
        return self._grown(self.messages[:after])

    def edit(self, turn: int, text: str) -> int:
        """A new branch that has `text` in the place of that turn's question, and nothing after it."""
        return self._grown([*self.messages[: self._place(turn)], {"role": "user", "content": text}])

    def switch(self, number: int) -> None:
        if not 1 <= number <= len(self._branches):
            raise ValueError(f"There is no branch {number}; there are {len(self._branches)}.")
        self.current = number

    def abandon(self, back_to: int) -> None:
        """Undo the latest fork or edit, and be in that branch again."""
        self._branches.pop()
        self.current = back_to

    def take_back(self) -> list[Message]:
        """Remove what follows the last question of this branch, and return it: a reply, or nothing."""
        end = self._place(self.num_turns) + 1
        removed = self.messages[end:]
        del self.messages[end:]
        return removed

    def request(self) -> list[Message]:
        """All up to the last question: what was sent for the last reply."""
        return self.messages[: self._place(self.num_turns) + 1]

    def listed(self) -> list[str]:
        """A line for each branch: how long it is, and where it leaves the one before."""
        lines = []
        for number, messages in enumerate(self._branches, start=1):
            mark = "*" if number == self.current else " "
            questions = _questions(messages)
            last = str(messages[questions[-1]]["content"]) if questions else ""
            lines.append(f"{mark} {number}  {len(questions)} turns  {last[:60]}")
        return lines

    def _grown(self, messages: list[Message]) -> int:
        self._branches.append(list(messages))
        self.current = len(self._branches)
        return self.current

    def _place(self, turn: int) -> int:
        """Index of a turn's question."""
        questions = _questions(self.messages)
        if not 1 <= turn <= len(questions):
            raise ValueError(f"There is no turn {turn}; this branch has {len(questions)}.")
        return questions[turn - 1]


def _questions(messages: list[Message]) -> list[int]:
    return [at for at, message in enumerate(messages) if message.get("role") == "user"]
