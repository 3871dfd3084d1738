"""Interned token ids: each number one object for the whole process. Pure; any thread.

The pool and every chain keep the ids of a block as a tuple: it then costs 8 bytes a token rather than 40, and compares
with an equal one, made elsewhere, by address.
"""

from collections.abc import Iterable, Iterator

from sessions.types import TokenId


class _Known(dict[int, TokenId]):
    """Each id -> the one object that stands for it. Two threads that add one at once get the same."""

    def __missing__(self, token_id: int) -> TokenId:
        return self.setdefault(token_id, TokenId(token_id))


_KNOWN = _Known()
"""Never larger than the vocabulary of the models that this process has loaded."""


def interned(ids: Iterable[int]) -> Iterator[TokenId]:
    """The same ids, of a vocabulary, as shared objects."""
    return map(_KNOWN.__getitem__, ids)
