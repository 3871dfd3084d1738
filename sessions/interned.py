"""Interned token ids: each number one object for the whole process. Pure; any thread.

The pool and every chain keep the ids of a block as a tuple: it then costs 8 bytes a token rather than 40, and compares
with an equal one, made elsewhere, by address.
"""

from collections.abc import Iterable

from sessions.types import TokenId

_KNOWN: dict[int, TokenId] = {}
"""Never larger than the vocabulary of the models that this process has loaded."""


def interned(ids: Iterable[int]) -> list[TokenId]:
    """The same ids, of a vocabulary, as shared objects."""
    known = _KNOWN.setdefault
    return [known(token_id, token_id) for token_id in ids]  # type: ignore[arg-type]  # an id of the vocabulary
