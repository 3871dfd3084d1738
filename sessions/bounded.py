"""Bounded: a mapping that holds so many bytes at most and lets go of what was not used for longest. Pure."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Bounded(Generic[Key, Value]):
    """A mapping of so many bytes at most; the least recently used goes first."""

    def __init__(self, max_bytes: int, size: Callable[[Value], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.num_bytes = 0

    def get(self, key: Key) -> Value | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value) -> None:
        self.pop(key)
        size = self._size(value)
        self._entries[key] = value, size
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1][1]

    def pop_all(self, chosen: Callable[[Key, Value], bool]) -> None:
        for key in [key for key, (value, _) in self._entries.items() if chosen(key, value)]:
            self.pop(key)

    def latest(self) -> Iterator[Value]:
        return (value for value, _ in reversed(self._entries.values()))

    def pop(self, key: Key) -> None:
        self.num_bytes -= self._entries.pop(key, (None, 0))[1]
