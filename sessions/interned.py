"""Interned token ids: each number one object for the whole process. Pure; any thread.

A list of ids then costs 8 bytes a token rather than 36, its copy makes no objects, and lists of the same ids compare by
address: of 50,000 tokens that is most of what the next turn of a conversation costs outside the model.
"""

from collections.abc import Iterable

from sessions.types import TokenId

_KNOWN: dict[int, TokenId] = {}
"""Never larger than the vocabulary of the models that this process has loaded."""


def interned(ids: Iterable[int]) -> list[TokenId]:
    """The same ids, of a vocabulary, as shared objects."""
    known = _KNOWN.setdefault
    return [known(token_id, token_id) for token_id in ids]  # type: ignore[arg-type]  # an id of the vocabulary
