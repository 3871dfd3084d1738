"""BlockTable: a request's blocks in order, and their ids in memory that kernels read in place. Engine thread only.

    blocks   [ Block ][ Block ][ Block ]
    ids      [   7   ][   2   ][  19   ][ .. spare ..]    int32, grown by doubling; `address` is where it starts

So a step hands over one address per request, however long the conversation is.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from sessions.engine.block import Block

Ids = npt.NDArray[np.int32]


class BlockTable:
    """A list of blocks. Between a step's schedule and its commit nobody changes it."""

    __slots__ = ("_blocks", "_ids", "address")

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        self._blocks: list[Block] = []
        self._ids: Ids = np.zeros(8, np.int32)
        self.address: int = self._ids.ctypes.data
        self.extend(blocks)

    @property
    def ids(self) -> Ids:
        """[len] int32 view."""
        return self._ids[: len(self._blocks)]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def __reversed__(self) -> Iterator[Block]:
        return reversed(self._blocks)

    def __getitem__(self, index: int) -> Block:
        return self._blocks[index]

    def __setitem__(self, index: int, block: Block) -> None:
        self._blocks[index] = block
        self._ids[index] = block.id

    def append(self, block: Block) -> None:
        self.extend((block,))

    def extend(self, blocks: Iterable[Block]) -> None:
        start = len(self._blocks)
        self._blocks.extend(blocks)
        end = len(self._blocks)
        if end > len(self._ids):
            self._reserve(2 * end)
        self._ids[start:end] = [block.id for block in self._blocks[start:]]

    def _reserve(self, capacity: int) -> None:
        ids = np.zeros(capacity, np.int32)
        ids[: len(self._ids)] = self._ids
        self._ids = ids
        self.address = ids.ctypes.data
