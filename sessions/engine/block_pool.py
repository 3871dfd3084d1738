"""Who holds which block of the KV pool, what each block contains, and which one is given up next.

Owns block ids, reference counts, the block tree and the free queue (built of what `block.py` has). Pure Python: no
tensor, no lock, no clock; used from the engine thread only.

A block is `block_size` consecutive tokens' KV over all layers. Registered blocks form a tree, one root per root hash
(`sessions/hashing.py`), so that whatever may not be shared has another root:

    root ── [A B C D] ── [E F G H] ── [I J . .]        . = not computed yet
                     └── [E F X Y]                     block size 4

* A full block has a hash and is found by it; a partial block (a tail) has none and is found among its parent's children
  by comparing tokens. Both are registered *after* their KV is written, never before.
* A request holds a path from the root: a held block's parent is held. Hence what is stored is prefix-closed.
* The free queue holds unreferenced blocks, least recently used first:

      head ─ empty blocks ─ oldest tail … its head … ─ youngest tail … its head ─ end

  A path is freed from its tail to its head, and using a block means using its whole path, so a child always stands
  before its parent: the block at the head of the queue is a leaf. `check_integrity()` proves it.
* A hit compares tokens: two prompts whose hashes collide are a miss, not each other's KV.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Reversible, Sequence
from typing import NamedTuple

from sessions.engine.block import Block, Children, FreeQueue
from sessions.types import BlockHash, BlockId


class PoolExhausted(Exception):
    """`allocate` was asked for more than `num_free_blocks`; nothing was taken."""


class Match(NamedTuple):
    """What the pool holds of a prompt: whole blocks, then `num_tail_tokens` leading tokens of `tail`."""

    blocks: list[Block]
    tail: Block | None
    num_tail_tokens: int


class BlockPool:
    """Fixed set of `num_blocks` blocks of `block_size` tokens.

    Methods that mutate say so. None blocks, none logs. Only `allocate` raises (`PoolExhausted`).
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.blocks = [Block(BlockId(index)) for index in range(num_blocks)]
        self.num_evicted_blocks = 0
        self._removed: list[BlockHash] = []
        self._by_hash: dict[BlockHash, Block] = {}
        self._roots: dict[BlockHash, Children] = {}
        self._free = FreeQueue()
        for block in self.blocks:
            self._free.append(block)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that `allocate` can hand out now, cached ones included."""
        return self._free.length

    @property
    def num_cached_blocks(self) -> int:
        """Registered full blocks, held or not."""
        return len(self._by_hash)

    # -- lookup --

    def num_cached_prefix_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading `hashes` are stored. Galloping is legal because storage is prefix-closed.

        The one method that other threads may call: it reads a dict, and a stale answer is only a stale hint.
        """
        return bisect_left(hashes, True, key=lambda block_hash: block_hash not in self._by_hash)

    def match(self, root: BlockHash, hashes: Sequence[BlockHash], token_ids: Sequence[int]) -> Match:
        """Longest stored prefix of `token_ids`, token-granular. Changes nothing.

        `hashes` are the chained hashes of `token_ids`' whole blocks (more are ignored). The caller cuts `token_ids`
        short by what it must compute itself (the last token, for its logits).
        """
        size = self.block_size
        blocks: list[Block] = []
        parent: Block | None = None
        for index in range(self.num_cached_prefix_blocks(hashes[: len(token_ids) // size])):
            block = self._by_hash[hashes[index]]
            tokens = tuple(token_ids[index * size : (index + 1) * size])
            if block.parent is not parent or block.root != root or block.token_ids != tokens:
                break
            blocks.append(block)
            parent = block
        children = self._roots.get(root) if parent is None else parent.children
        rest = tuple(token_ids[len(blocks) * size : (len(blocks) + 1) * size])
        if not children or not rest:
            return Match(blocks, None, 0)
        return Match(blocks, *children.longest_common_prefix(rest))

    def continuation(self, root: BlockHash, parent: Block | None, tail: tuple[int, ...], limit: int) -> tuple[int, ...]:
        """Up to `limit` tokens stored after `parent`'s block and `tail`; one branch of many. Changes nothing."""
        found: tuple[int, ...] = ()
        while len(found) < limit:
            children = self._roots.get(root) if parent is None else parent.children
            parent = children.extending(tail[: self.block_size]) if children else None
            if parent is None:
                break
            found += parent.token_ids[len(tail) :]
            tail = tail[len(parent.token_ids) :]
            if not parent.is_full:
                break
        return found[:limit]

    # -- holding --

    def touch(self, blocks: Iterable[Block]) -> None:
        """Add a reference to each block; a free one leaves the free queue. Mutates."""
        for block in blocks:
            if block.ref_count == 0:
                self._free.remove(block)
            block.ref_count += 1

    def allocate(self, num_blocks: int) -> list[Block]:
        """Take `num_blocks` blocks off the free queue, evicting what they cached. Mutates; all or nothing."""
        if num_blocks > self._free.length:
            raise PoolExhausted(f"{num_blocks} blocks wanted, {self._free.length} free")
        taken = []
        for _ in range(num_blocks):
            block = self._free.pop_head()
            if block.is_registered:
                self.num_evicted_blocks += 1
                self._unregister(block)
            block.ref_count = 1
            taken.append(block)
        return taken

    def free(self, blocks: Reversible[Block]) -> None:
        """Drop one reference to each block of a path, tail first. Mutates.

        A block nobody holds keeps its KV if it is registered (end of the queue), and is handed out next if it is not.
        """
        for block in reversed(blocks):
            block.ref_count -= 1
            if block.ref_count == 0:
                if block.is_registered:
                    self._free.append(block)
                else:
                    self._free.push_head(block)

    # -- registering: only after the KV is written --

    def register_full(
        self, block: Block, root: BlockHash, parent: Block | None, block_hash: BlockHash, token_ids: tuple[int, ...]
    ) -> Block:
        """`block` now holds the KV of `token_ids` after `parent`. Returns the block to hold from now on. Mutates.

        If the same content is already stored, that block is returned with a reference added and `block`'s reference is
        dropped: every content is stored once. If it cannot be registered (its parent is not, or the hash collides with
        other content), `block` stays private to its holder.
        """
        if not self._can_follow(root, parent):
            return block
        stored = self._by_hash.get(block_hash)
        if stored is block:
            return block
        if stored is not None:
            if stored.parent is parent and stored.root == root and stored.token_ids == token_ids:
                self.touch([stored])
                if block.is_registered:
                    self._unregister(block)
                self.free([block])
                return stored
            return block
        self._register(block, root, parent, token_ids)
        block.block_hash = block_hash
        self._by_hash[block_hash] = block
        return block

    def register_partial(self, block: Block, root: BlockHash, parent: Block | None, token_ids: tuple[int, ...]) -> None:
        """`block` holds the KV of `token_ids` (fewer than `block_size`) after `parent`; a holder may append. Mutates.

        A tail that another stored block already contains is not registered: it is free for reuse at once.
        """
        if not token_ids or not self._can_follow(root, parent) or block.token_ids == token_ids:
            return
        children = self._roots.get(root) if parent is None else parent.children
        if children:
            other, length = children.longest_common_prefix(token_ids)
            if other is not None and other is not block and length == len(token_ids):
                if block.is_registered:
                    self._unregister(block)
                return
        self._register(block, root, parent, token_ids)

    def _can_follow(self, root: BlockHash, parent: Block | None) -> bool:
        return parent is None or (parent.is_full and parent.root == root)

    def _register(self, block: Block, root: BlockHash, parent: Block | None, token_ids: tuple[int, ...]) -> None:
        if block.is_registered:
            self._unregister(block)
        children = self._children_of(root, parent)
        for other in list(children.neighbours(token_ids)):
            # A free tail that the new block contains is of no more use to anybody.
            if other.ref_count == 0 and not other.is_full and token_ids[: len(other.token_ids)] == other.token_ids:
                self._unregister(other)
                self._free.remove(other)
                self._free.push_head(other)
        block.root, block.parent, block.token_ids = root, parent, token_ids
        self._children_of(root, parent).add(block)

    def _children_of(self, root: BlockHash, parent: Block | None) -> Children:
        if parent is None:
            return self._roots.setdefault(root, Children())
        if parent.children is None:
            parent.children = Children()
        return parent.children

    def _unregister(self, block: Block) -> None:
        assert block.root is not None
        children = self._children_of(block.root, block.parent)
        children.remove(block)
        if block.parent is None and not children:
            del self._roots[block.root]
        if block.block_hash is not None:
            del self._by_hash[block.block_hash]
            self._removed.append(block.block_hash)
        block.root = block.parent = block.block_hash = None
        block.token_ids = ()

    # -- whole pool --

    def take_removed(self) -> list[BlockHash]:
        """BlockRemoved events since the last call, leaves before what they follow. Mutates."""
        removed, self._removed = self._removed, []
        return removed

    def leaf_chains(self) -> Iterator[tuple[BlockHash, list[BlockHash]]]:
        """(root, hashes from the first block on) of every stored path that no full block continues."""
        for block in self._by_hash.values():
            if any(child.is_full for child in block.children or ()):
                continue
            chain: list[BlockHash] = []
            node: Block | None = block
            while node is not None:
                assert node.block_hash is not None
                chain.append(node.block_hash)
                node = node.parent
            assert block.root is not None
            yield block.root, chain[::-1]

    def check_integrity(self) -> None:
        """Raise AssertionError unless every invariant of this module's docstring holds. O(blocks)."""
        order = {block: position for position, block in enumerate(self._free)}
        assert len(order) == self._free.length, "the free queue's length is wrong"
        registered = 0
        for block in self.blocks:
            assert block.ref_count >= 0, f"{block}: negative ref_count"
            assert (block.ref_count == 0) == (block in order), f"{block}: free queue and ref_count disagree"
            if not block.is_registered:
                assert not block.token_ids and block.parent is None and not block.children, f"{block}: leftovers"
                continue
            registered += 1
            self._check_registered(block, order)
        num_children = sum(len(block.children or ()) for block in self.blocks)
        assert registered == num_children + sum(map(len, self._roots.values())), "a child is not registered"
        assert all(len(children) for children in self._roots.values()), "an empty root was kept"
        assert all(self._by_hash[h].block_hash == h for h in self._by_hash), "the hash map is wrong"

    def _check_registered(self, block: Block, order: dict[Block, int]) -> None:
        parent, root = block.parent, block.root
        siblings = self._roots.get(root) if parent is None and root is not None else parent and parent.children
        assert siblings and block in set(siblings), f"{block}: its parent does not know it"
        assert block.is_full == (len(block.token_ids) == self.block_size), f"{block}: hash and fill disagree"
        assert not block.is_full or (block.block_hash and self._by_hash.get(block.block_hash) is block), (
            f"{block}: hash map"
        )
        assert block.is_full or not block.children, f"{block}: a partial block has children"
        if parent is not None:
            assert parent.is_full and parent.root == root, f"{block}: its parent is not registered"
            assert block.ref_count == 0 or parent.ref_count > 0, f"{block}: held, but its parent is not"
            if block in order and parent in order:
                assert order[block] < order[parent], f"{block}: would be evicted after its parent"
