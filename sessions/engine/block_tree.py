"""BlockTree: what the registered blocks contain, and which follows which. Pure; engine thread only.

One tree for each root hash (`sessions/hashing.py`), so that whatever may not be shared has another root:

    root ── [A B C D] ── [E F G H] ── [I J . .]        . = not computed yet
                     └── [E F X Y]                     block size 4

* A full block has a hash and is found by it; a partial block (a tail) has none and is found among its parent's children
  by comparing tokens.
* What is stored is prefix-closed: a block's parent is registered under the same root. The pool removes leaves only.
* A root may begin after a block of the shared root (`hashing.HashChain`): then all its first blocks follow that block.
  They are its root's, not that block's children: who looks under one root sees nothing of another.
* A hit compares tokens: two prompts whose hashes collide are a miss, not each other's KV.

Knows nothing of who holds a block and of what is given up next: that is `BlockPool`'s, which alone changes the tree.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sessions.engine.block import Block, Children, common_prefix_length
from sessions.types import BlockHash


class Match(NamedTuple):
    """What the pool holds of a prompt: whole blocks, then `num_tail_tokens` leading tokens of `tail`."""

    blocks: list[Block]
    tail: Block | None
    num_tail_tokens: int


class BlockTree:
    """Registered blocks by content. Raises nothing. shared_root: the one that others may begin after."""

    def __init__(self, block_size: int, shared_root: BlockHash | None = None) -> None:
        self.block_size = block_size
        self._shared_root = shared_root
        self.by_hash: dict[BlockHash, Block] = {}
        """Every registered full block."""
        self.roots: dict[BlockHash, Children] = {}
        """First blocks by root; a root without any is not kept."""

    # -- lookup --

    def num_prefix_blocks(self, hashes: Sequence[BlockHash], end: int | None = None) -> int:
        """How many leading `hashes`, of the first `end`, are stored. Bisecting is legal because storage is
        prefix-closed. Any thread."""
        return bisect_left(hashes, True, hi=end, key=lambda block_hash: block_hash not in self.by_hash)

    def match(
        self, root: BlockHash, hashes: Sequence[BlockHash], runs: Sequence[tuple[int, ...]], tail: Sequence[int]
    ) -> Match:
        """See `BlockPool.match`. runs: the ids of whole blocks, of which `hashes` are. tail: of a part of the next."""
        num_found = self.num_prefix_blocks(hashes, min(len(hashes), len(runs)))
        blocks = self._path_of(root, hashes, runs, num_found)
        if blocks is None:  # hashes collide
            num_found = bisect_left(range(num_found), True, key=lambda n: not self._path_of(root, hashes, runs, n + 1))
            blocks = self._path_of(root, hashes, runs, num_found) or []
        parent = blocks[-1] if blocks else None
        rest = runs[len(blocks)] if len(blocks) < len(runs) else tuple(tail)
        if not rest:
            return Match(blocks, None, 0)
        if len(blocks) < len(hashes) and (shared := self._shared_block(hashes[len(blocks)], parent)):
            return Match(blocks, shared, common_prefix_length(shared.token_ids, rest))
        children = self.children(root, parent)
        return Match(blocks, *children.longest_common_prefix(rest)) if children else Match(blocks, None, 0)

    def _path_of(
        self, root: BlockHash, hashes: Sequence[BlockHash], runs: Sequence[tuple[int, ...]], length: int
    ) -> list[Block] | None:
        """The path that `root` leads to the last of the first `length` hashes on, if that has the leading `runs`.

        Thousands, maybe: no list of them is copied that need not be.
        """
        path: list[Block] = []
        block = self.by_hash[hashes[length - 1]] if length else None
        if block is not None and block.root not in (root, self._shared_root):  # its parents' too, or shared
            return None
        while block is not None:
            path.append(block)
            block = block.parent
        path.reverse()
        is_same = [block.token_ids for block in path] == runs[:length]
        return path if is_same else None

    def _shared_block(self, block_hash: BlockHash, parent: Block | None) -> Block | None:
        block = self.by_hash.get(block_hash)
        is_shared = block is not None and block.root == self._shared_root and block.parent is parent
        return block if is_shared else None

    def continuation(self, root: BlockHash, parent: Block | None, tail: tuple[int, ...], limit: int) -> tuple[int, ...]:
        """Up to `limit` tokens stored after `parent`'s block and `tail`; one branch of many."""
        found: tuple[int, ...] = ()
        while len(found) < limit:
            children = self.children(root, parent)
            parent = children.extending(tail[: self.block_size]) if children else None
            if parent is None:
                break
            found += parent.token_ids[len(tail) :]
            tail = tail[len(parent.token_ids) :]
            if not parent.is_full:
                break
        return found[:limit]

    def children(self, root: BlockHash, parent: Block | None) -> Children | None:
        """The blocks of `root` after `parent`; its first ones where that is None, or where the root begins after it."""
        if parent is not None and parent.root == root:
            return parent.children
        first_blocks = self.roots.get(root)
        return first_blocks if first_blocks and next(iter(first_blocks)).parent is parent else None

    def neighbours(self, root: BlockHash, parent: Block | None, token_ids: tuple[int, ...]) -> Iterator[Block]:
        """The blocks after `parent` that stand just before and just after `token_ids`, if they were one of them."""
        children = self.children(root, parent)
        return children.neighbours(token_ids) if children else iter(())

    def path(self, root: BlockHash, hashes: Sequence[BlockHash]) -> list[Block]:
        """The stored blocks of a prefix of `hashes`, the shared ones before it too. None if nothing is under `root`."""
        path = [self.by_hash[block_hash] for block_hash in hashes[: self.num_prefix_blocks(hashes)]]
        return path if path and path[-1].root == root else []

    def tops(self, root: BlockHash, first: BlockHash | None) -> list[Block]:
        """The first blocks under `root`; or the one of this hash, if it is under it."""
        if first is None:
            return list(self.roots.get(root) or ())
        block = self.by_hash.get(first)
        return [block] if block is not None and block.root == root else []

    def num_needed(self, hashes: Sequence[BlockHash]) -> int:
        """See `BlockPool.num_needed`. Tails after the last block are the path's own; elsewhere they are another's."""
        following: BlockHash | None = None
        for num_blocks in range(len(hashes), 0, -1):
            block = self.by_hash.get(hashes[num_blocks - 1])
            children = block.children if block is not None else None
            if any(child.block_hash != following for child in children or ()):
                return num_blocks
            following = hashes[num_blocks - 1]
        return 0

    def below(self, blocks: Iterable[Block]) -> list[Block]:
        """`blocks` and all that follows them, every parent before its children."""
        found = list(blocks)
        for block in found:  # grows while it is read: breadth first
            found.extend(block.children or ())
        return found

    def tails_after(self, parent_hash: BlockHash) -> list[Block]:
        """The partial blocks after the full one of this hash."""
        parent = self.by_hash.get(parent_hash)
        children = parent.children if parent is not None else None
        return [child for child in children or () if not child.is_full]

    def leaves(self) -> list[Block]:
        """Full blocks that no full block continues."""
        return [block for block in self.by_hash.values() if not any(child.is_full for child in block.children or ())]

    def chain_to(self, block: Block) -> tuple[BlockHash, list[BlockHash]] | None:
        """(root, hashes from its first block on) of the path to a full block; None if it is stored no more."""
        if block.root is None or block.block_hash is None:
            return None
        hashes: list[BlockHash] = []
        node: Block | None = block
        while node is not None and node.root == block.root:
            assert node.block_hash is not None
            hashes.append(node.block_hash)
            node = node.parent
        return block.root, hashes[::-1]

    # -- change --

    def can_follow(self, root: BlockHash, parent: Block | None) -> bool:
        return parent is None or (parent.is_full and parent.root in (root, self._shared_root))

    def add(self, block: Block, root: BlockHash, parent: Block | None, token_ids: tuple[int, ...]) -> None:
        """Register an unregistered block; it is partial until `set_hash`. Mutates."""
        block.root, block.parent, block.token_ids = root, parent, token_ids
        if parent is None or parent.root != root:
            self.roots.setdefault(root, Children()).add(block)
            return
        if parent.children is None:
            parent.children = Children()
        parent.children.add(block)

    def set_hash(self, block: Block, block_hash: BlockHash) -> None:
        """`block` is full, and found by its hash from now on. Mutates."""
        block.block_hash = block_hash
        self.by_hash[block_hash] = block

    def remove(self, block: Block) -> None:
        """Unregister a leaf: nothing finds it any more. Mutates."""
        assert block.root is not None
        siblings = self.children(block.root, block.parent)
        assert siblings is not None
        siblings.remove(block)
        if block.parent is not None and block.parent.root == block.root:
            block.parent.num_hits += block.num_hits
        elif not siblings:
            del self.roots[block.root]
        if block.block_hash is not None:
            del self.by_hash[block.block_hash]
        block.root = block.parent = block.block_hash = None
        block.token_ids = ()
        block.num_hits = 0

    # -- invariants --

    def check_integrity(self, blocks: Sequence[Block]) -> None:
        """Raise AssertionError unless the tree agrees with `blocks`, which are all there are. O(blocks)."""
        registered = [block for block in blocks if block.is_registered]
        for block in blocks:
            if not block.is_registered:
                assert not block.token_ids and block.parent is None and not block.children, f"{block}: leftovers"
                assert block.block_hash is None and not block.num_hits, f"{block}: leftovers"
        for block in registered:
            self._check_registered(block)
        num_children = sum(len(block.children or ()) for block in blocks)
        assert len(registered) == num_children + sum(map(len, self.roots.values())), "a child is not registered"
        assert all(len(children) for children in self.roots.values()), "an empty root was kept"
        assert all(block.block_hash == key for key, block in self.by_hash.items()), "the hash map is wrong"

    def _check_registered(self, block: Block) -> None:
        parent, root = block.parent, block.root
        assert root is not None
        siblings = self.children(root, parent)
        assert siblings and block in set(siblings), f"{block}: its parent does not know it"
        assert block.is_full == (len(block.token_ids) == self.block_size), f"{block}: hash and fill disagree"
        if block.block_hash is not None:
            assert self.by_hash.get(block.block_hash) is block, f"{block}: hash map"
        else:
            assert not block.children, f"{block}: a partial block has children"
        if parent is not None:
            assert parent.is_full and parent.root in (root, self._shared_root), f"{block}: its parent is not registered"
