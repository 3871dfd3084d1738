"""Constraint: what a request's output must match, as the engine sees it. Pure; `sessions/grammars.py` makes them.

One step of a request under a constraint:

    schedule    forced     tokens that alone can follow, computed as drafts; of other drafts, what is legal (num_legal)
    run         masks      what may be drawn after the known tokens, and after each draft
    commit      accept     each token that is kept, in order

What it says depends on the tokens it accepted alone: drafts, preemption and neighbours change nothing.
"""

from collections.abc import Sequence
from typing import Protocol

from sessions.errors import SessionError


class Constraint(Protocol):
    """Follows the output of one request. Raises nothing: what fails is in `error`. Engine thread."""

    @property
    def is_complete(self) -> bool:
        """The output matches, and nothing can follow it."""

    @property
    def error(self) -> SessionError | None:
        """Why nothing more can be said of the output; the request must end."""

    def accept(self, token_id: int) -> None:
        """`token_id` is the output's next token."""

    def forced(self, limit: int) -> tuple[int, ...]:
        """Up to `limit` tokens that will be drawn next whatever the model says."""

    def num_legal(self, token_ids: Sequence[int]) -> int:
        """How many of `token_ids` may follow, one after another."""

    def masks(self, drafts: Sequence[int]) -> list[bytes]:
        """What may follow the output, and what may follow each of `drafts`, which are legal: 1 + len(drafts) masks.

        Bit i of a mask, lowest first, is token id i. A mask has a bit set, unless `error` is.
        """
