"""Holding: one stored path, as an operator lists it. Pure; reads the tree and changes nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isinf

from sessions.engine.block import Block
from sessions.engine.retention import TTL_S
from sessions.types import BlockHash


@dataclass(frozen=True, slots=True)
class Holding:
    """A path from a root to a leaf.

    num_declared_tokens: leading tokens that the operator declared shared; they are the pool's, not the path's owner's.
    num_shared_tokens: leading tokens that at least one other path begins with too, declared ones included.
    age_s: since the leaf's last use; 0 while a request holds it.
    num_hits: later requests that reused some of the path's own part, or all of it where nothing is its own.
    ttl_s: what is left before the leaf counts as expired, 0 if it does; None if it cannot.
    leaf_hash: hash of the path's last full block; None if there is none.
    """

    root: BlockHash
    leaf_hash: BlockHash | None
    num_tokens: int
    num_declared_tokens: int
    num_shared_tokens: int
    age_s: float
    num_hits: int
    ttl_s: float | None
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class _Position:
    """The path down to and including `block`, while walking. num_own_hits: since the last place where paths part."""

    block: Block
    leaf_hash: BlockHash | None
    num_declared_tokens: int
    num_tokens: int
    num_shared_tokens: int
    num_own_hits: int


def list_holdings(root: BlockHash, first_blocks: Iterable[Block], now: float) -> Iterator[Holding]:
    """Every path under `root`. O(blocks under it)."""
    ways = [_first(block) for block in first_blocks]
    while ways:
        at = ways.pop()
        if at.block.children:
            ways.extend(_after(at, child) for child in at.block.children)
        else:
            yield _holding(root, at, now)


def _first(block: Block) -> _Position:
    num_declared, before = 0, block.parent
    while before is not None:
        num_declared += len(before.token_ids)
        before = before.parent
    num_tokens = num_declared + len(block.token_ids)
    return _Position(block, block.block_hash, num_declared, num_tokens, num_declared, block.num_hits)


def _after(at: _Position, block: Block) -> _Position:
    parts = len(at.block.children or ()) > 1
    return _Position(
        block,
        block.block_hash or at.leaf_hash,
        at.num_declared_tokens,
        at.num_tokens + len(block.token_ids),
        at.num_tokens if parts else at.num_shared_tokens,
        block.num_hits + (0 if parts else at.num_own_hits),
    )


def _holding(root: BlockHash, at: _Position, now: float) -> Holding:
    block = at.block
    age_s = now - block.last_used_at if block.ref_count == 0 else 0.0
    lasts = block.num_pins > 0 or isinf(TTL_S[block.level])
    return Holding(
        root=root,
        leaf_hash=at.leaf_hash,
        num_tokens=at.num_tokens,
        num_declared_tokens=at.num_declared_tokens,
        num_shared_tokens=at.num_shared_tokens,
        age_s=age_s,
        num_hits=at.num_own_hits,
        ttl_s=None if lasts else max(0.0, TTL_S[block.level] - age_s),
        is_pinned=block.num_pins > 0,
    )
