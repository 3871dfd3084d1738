"""Which paths are pinned, and how many blocks that is. Counts on the blocks; the pool keeps them out of its queues.

    pins     A: root ── 1 ── 2 ── 3        B: root ── 1 ── 2
    num_pins          1: 2  2: 2  3: 1                              unpin B: 1: 1  2: 1  3: 1

A pin is known by the last block of its path, so that pinning a path twice is pinning it once.
"""

from collections.abc import Iterator, Sequence

from sessions.engine.block import Block


class PinLimitExceeded(Exception):
    """`pin` was asked for more than may be pinned; nothing was pinned."""

    def __init__(self, *, num_wanted_blocks: int, num_pinned_blocks: int, max_pinned_blocks: int) -> None:
        super().__init__(
            f"{num_wanted_blocks} more blocks to pin, and {num_pinned_blocks} of at most {max_pinned_blocks} are pinned"
        )
        self.num_wanted_blocks = num_wanted_blocks
        self.num_pinned_blocks = num_pinned_blocks
        self.max_pinned_blocks = max_pinned_blocks


class Pins:
    """Pinned paths of registered blocks, `max_num_blocks` different blocks at most."""

    __slots__ = ("_lasts", "_max_num_blocks", "num_blocks")

    def __init__(self, max_num_blocks: int) -> None:
        self._max_num_blocks = max_num_blocks
        self._lasts: set[Block] = set()
        self.num_blocks = 0
        """Blocks on at least one pinned path."""

    def ends_in(self, block: Block) -> bool:
        """Is `block` the last of a pinned path?"""
        return block in self._lasts

    def add(self, path: Sequence[Block]) -> Iterator[Block]:
        """Pin a path that is not pinned. Yields the blocks that no pin held before. Raises PinLimitExceeded first."""
        fresh = [block for block in path if block.num_pins == 0]
        if self.num_blocks + len(fresh) > self._max_num_blocks:
            raise PinLimitExceeded(
                num_wanted_blocks=len(fresh),
                num_pinned_blocks=self.num_blocks,
                max_pinned_blocks=self._max_num_blocks,
            )
        for block in path:
            block.num_pins += 1
        self._lasts.add(path[-1])
        self.num_blocks += len(fresh)
        return iter(fresh)

    def remove(self, last: Block) -> Iterator[Block]:
        """Undo the pin that ends in `last`. Yields the blocks that no pin holds any more, the last first."""
        self._lasts.remove(last)
        block: Block | None = last
        while block is not None:
            block.num_pins -= 1
            if block.num_pins == 0:
                self.num_blocks -= 1
                yield block
            block = block.parent

    def check_integrity(self, blocks: Sequence[Block]) -> None:
        """Raise AssertionError unless the counts are those of the pinned paths. O(blocks + paths)."""
        counts: dict[Block, int] = {}
        for last in self._lasts:
            block: Block | None = last
            while block is not None:
                assert block.is_full, f"{block}: pinned, but not stored"
                counts[block] = counts.get(block, 0) + 1
                block = block.parent
        for block in blocks:
            assert block.num_pins == counts.get(block, 0), f"{block}: {block.num_pins} pins"
        assert self.num_blocks == len(counts) <= self._max_num_blocks, "the number of pinned blocks is wrong"
