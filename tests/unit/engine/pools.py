"""Requests against a pool without a scheduler: what it does for one, in a line or two of a test."""

from sessions.engine.block import Block
from sessions.engine.block_pool import BlockPool
from sessions.hashing import chain_hashes
from sessions.types import BlockHash

ROOT = BlockHash(b"r" * 16)


def hashes_of(pool: BlockPool, tokens: list[int], root: BlockHash = ROOT) -> list[BlockHash]:
    return chain_hashes(root, tokens, pool.block_size)


def store(
    pool: BlockPool, tokens: list[int], root: BlockHash = ROOT, *, now: float = 0.0, owner: str | None = None
) -> list[Block]:
    """What the scheduler does for a request that computes `tokens`, up to where it lets go. Returns its path."""
    hashes = hashes_of(pool, tokens, root)
    match = pool.match(root, hashes, tokens)
    pool.touch(match.blocks)
    path = [*match.blocks, *pool.allocate(-(-len(tokens) // pool.block_size) - len(match.blocks), now)]
    for index in range(len(match.blocks), len(hashes)):
        run = tuple(tokens[index * pool.block_size : (index + 1) * pool.block_size])
        parent = path[index - 1] if index else None
        path[index] = pool.register_full(path[index], root, parent, hashes[index], run, owner)
    full = len(hashes)
    if len(path) > full:
        tail = tuple(tokens[full * pool.block_size :])
        parent = path[full - 1] if full else None
        path[full] = pool.register_partial(path[full], root, parent, tail, owner, is_final=True)
    return path


def serve(
    pool: BlockPool, tokens: list[int], root: BlockHash = ROOT, *, now: float, level: int = 0, owner: str | None = None
) -> None:
    """A whole request: match, compute, keep at `level` or higher, gone at once."""
    hashes = hashes_of(pool, tokens, root)
    match = pool.match(root, hashes, tokens)
    pool.touch(match.blocks)
    level = max(level, pool.reuse(match, hashes))
    pool.free(match.blocks, now)
    path = store(pool, tokens, root, now=now, owner=owner)
    pool.retain(path, len(tokens), level)
    pool.free(path, now)


def matched(pool: BlockPool, tokens: list[int], root: BlockHash = ROOT) -> int:
    """How many leading `tokens` the pool has."""
    match = pool.match(root, hashes_of(pool, tokens, root), tokens)
    return len(match.blocks) * pool.block_size + match.num_tail_tokens


def levels(pool: BlockPool, tokens: list[int], root: BlockHash = ROOT) -> list[int]:
    """Levels of the stored blocks of `tokens`."""
    return [block.level for block in pool.match(root, hashes_of(pool, tokens, root), tokens).blocks]
