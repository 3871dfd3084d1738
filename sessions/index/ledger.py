"""Ledger: what this replica holds, and what Redis has not been told yet. Pure: no I/O, no clock of its own.

The pool is the truth; the ledger mirrors the part of it that was published (hash -> parent hash), because a
block that is evicted can no longer say what chain it stood in, and a cut needs the chain. The engine thread
and the event loop write, the publisher thread drains; one lock, held for O(new blocks).

    publish(chain)      ──▶ waiting chains, newest per conversation ──▶ next_chain()   first
    learn(pool's leaves) ─▶ resync chains                           ──▶ next_chain()   second
    evicted(hashes)     ──▶ evicted: hash -> parent ──branches──▶ cuts ──▶ next_cut()  last

Contract with the pool: every eviction of a published block is reported, leaves before what they hang from.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from sessions.trie import Incarnation, new_incarnation
from sessions.types import BlockHash

ResyncSource = Callable[[], Iterable[tuple[BlockHash, Sequence[BlockHash]]]]
"""Gives (root hash, chain of block hashes) for every leaf of the pool. Called from the index thread."""


class Chain(NamedTuple):
    """`incarnation` holds `blocks`, a chain under `root`."""

    root: BlockHash
    blocks: tuple[BlockHash, ...]
    incarnation: Incarnation


class Cut(NamedTuple):
    """`incarnation` holds nothing of `blocks` from `start` on."""

    root: BlockHash
    blocks: tuple[BlockHash, ...]
    start: int
    incarnation: Incarnation


class Ledger:
    """Thread-safe; nothing here waits or raises.

    `num_dropped` counts chains and evictions past the bounds. Either way the loss is remembered: a lost chain
    needs a resync, lost evictions a new incarnation as well: without claims, so without false ones.
    """

    def __init__(self, *, max_chains: int, max_evictions: int) -> None:
        self._max_chains = max_chains
        self._max_evictions = max_evictions
        self._lock = threading.Lock()
        self._incarnation = new_incarnation()
        self.num_dropped = 0
        self._needs_resync = False
        self._lost_evictions = False
        self._retired: deque[Incarnation] = deque(maxlen=16)
        self._parents: dict[BlockHash, BlockHash] = {}
        self._chains: OrderedDict[BlockHash, Chain] = OrderedDict()
        self._resync: deque[Chain] = deque()
        self._evicted: dict[BlockHash, BlockHash] = {}
        self._evicted_at = 0.0
        self._cutting: dict[BlockHash, BlockHash] = {}
        self._branches: deque[tuple[BlockHash, int]] = deque()
        self._cuts: deque[Cut] = deque(maxlen=max_chains)
        self._evicted_during_snapshot: set[BlockHash] | None = None

    @property
    def incarnation(self) -> Incarnation:
        return self._incarnation

    def publish(self, root: BlockHash, blocks: Sequence[BlockHash]) -> None:
        """The pool now holds the whole of `blocks`, a chain from the first block."""
        if not blocks:
            return
        with self._lock:
            num_new = self._hold(root, blocks)
            # A conversation that grew replaces its shorter self, whose leaf is where the new blocks hang.
            for block_hash in blocks[max(0, len(blocks) - num_new - 1) :]:
                self._chains.pop(block_hash, None)
            self._chains[blocks[-1]] = Chain(root, tuple(blocks), self._incarnation)
            if len(self._chains) > self._max_chains:
                self._chains.popitem(last=False)
                self.num_dropped += 1
                self._needs_resync = True

    def evicted(self, hashes: Iterable[BlockHash], now: float) -> None:
        """The pool no longer holds these blocks. What was never published is ignored."""
        with self._lock:
            for block_hash in hashes:
                if self._evicted_during_snapshot is not None:
                    self._evicted_during_snapshot.add(block_hash)
                parent = self._parents.pop(block_hash, None)
                if parent is None:
                    continue
                if not self._evicted:
                    self._evicted_at = now
                self._evicted[block_hash] = parent
            if len(self._evicted) > self._max_evictions:
                self.num_dropped += len(self._evicted)
                self._evicted.clear()
                self._lost_evictions = True

    def clear(self) -> None:
        """The pool was emptied: another life begins, and nothing of this one needs telling but its end."""
        with self._lock:
            self._renew_incarnation()
            for everything in (self._parents, self._chains, self._resync):
                everything.clear()

    def repair(self, root: BlockHash, blocks: Sequence[BlockHash]) -> None:
        """Redis says that we hold more of `blocks` than we do: withdraw the rest."""
        with self._lock:
            self._cuts.append(Cut(root, tuple(blocks), 0, self._incarnation))

    def retry(self, cut: Cut) -> None:
        """`cut` could not be told; `next_cut` checks it against what is held by then."""
        with self._lock:
            self._cuts.append(cut)

    def num_held(self, blocks: Sequence[BlockHash]) -> int:
        """How many leading blocks of a chain are held. What is held is prefix-closed: binary search."""
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high) // 2
            if blocks[middle] in self._parents:
                low = middle + 1
            else:
                high = middle
        return low

    # The publisher's side.

    def next_chain(self) -> Chain | None:
        """The next claim to make, as far as it is still held: fresh ones first, then a resync's."""
        with self._lock:
            while self._chains or self._resync:
                chain = self._chains.popitem(last=False)[1] if self._chains else self._resync.popleft()
                num_held = self.num_held(chain.blocks)
                if num_held and chain.incarnation == self._incarnation:
                    return chain._replace(blocks=chain.blocks[:num_held])
            return None

    def next_cut(self, now: float, delay_s: float) -> Cut | None:
        """The next claim to withdraw: once per evicted branch, when the oldest eviction is `delay_s` old."""
        with self._lock:
            if not self._branches and not self._cuts and self._evicted and now - self._evicted_at >= delay_s:
                self._cutting, self._evicted = self._evicted, {}
                self._branches = _branches(self._cutting)
            while self._branches or self._cuts:
                cut = self._resolve(*self._branches.popleft()) if self._branches else self._cuts.popleft()
                start = max(cut.start, self.num_held(cut.blocks))
                if start < len(cut.blocks) and cut.incarnation == self._incarnation:
                    return cut._replace(start=start)
            return None

    def cut_wait_s(self, now: float, delay_s: float) -> float:
        """Seconds until `next_cut` may have something; infinite when nothing was evicted."""
        if self._branches or self._cuts:
            return 0.0
        return max(0.0, self._evicted_at + delay_s - now) if self._evicted else float("inf")

    def lost_claims(self) -> None:
        """Redis may lack claims of ours: a resync is due."""
        self._needs_resync = True

    def settle(self) -> None:
        """Once evictions were lost, give up the incarnation whose claims may be false."""
        with self._lock:
            if self._lost_evictions:
                self._renew_incarnation()

    def begin_resync(self) -> Incarnation | None:
        """If a resync is due, the incarnation it is for; evictions are then noted until `learn`."""
        with self._lock:
            if not self._needs_resync:
                return None
            self._needs_resync = False
            self._evicted_during_snapshot = set()
            return self._incarnation

    def learn(self, incarnation: Incarnation, leaves: Iterable[tuple[BlockHash, tuple[BlockHash, ...]]]) -> None:
        """Queue the pool's leaf chains, a snapshot taken since `begin_resync` gave `incarnation`."""
        with self._lock:
            evicted, self._evicted_during_snapshot = self._evicted_during_snapshot or set(), None
            if incarnation != self._incarnation:
                return
            self._resync.clear()
            for root, blocks in leaves:
                if held := tuple(takewhile(lambda block_hash: block_hash not in evicted, blocks)):
                    self._hold(root, held)
                    self._resync.append(Chain(root, held, incarnation))

    def retired(self) -> Incarnation | None:
        """A former incarnation whose lease should end."""
        with self._lock:
            return self._retired.popleft() if self._retired else None

    # Below: the lock is held.

    def _hold(self, root: BlockHash, blocks: Sequence[BlockHash]) -> int:
        """Mirror a chain, from its end up to what is already known. Returns how many blocks were new."""
        for i in range(len(blocks) - 1, -1, -1):
            block_hash = blocks[i]
            if block_hash in self._parents:
                return len(blocks) - 1 - i
            self._parents[block_hash] = blocks[i - 1] if i else root
        return len(blocks)

    def _resolve(self, leaf: BlockHash, num_cut: int) -> Cut:
        """The chain from the root to an evicted leaf; its last `num_cut` blocks are to be withdrawn."""
        blocks, node = [], leaf
        while (parent := self._parent_of(node)) is not None:
            blocks.append(node)
            node = parent
        blocks.reverse()
        return Cut(node, tuple(blocks), len(blocks) - num_cut, self._incarnation)

    def _parent_of(self, block_hash: BlockHash) -> BlockHash | None:
        for parents in (self._cutting, self._parents, self._evicted):
            if (parent := parents.get(block_hash)) is not None:
                return parent
        return None

    def _renew_incarnation(self) -> None:
        self._retired.append(self._incarnation)
        self._incarnation = new_incarnation()
        self._lost_evictions, self._needs_resync = False, True
        for told in (self._evicted, self._cutting, self._branches, self._cuts):
            told.clear()


def _branches(evicted: dict[BlockHash, BlockHash]) -> deque[tuple[BlockHash, int]]:
    """(leaf, blocks to cut from there up): each evicted block once, side branches before their trunk.

    a ─ b ─ c ─ d        all evicted:  (d, 2): c d      then  (x, 3): a b x
        └── x
    """
    num_children = Counter(parent for parent in evicted.values() if parent in evicted)
    branches: deque[tuple[BlockHash, int]] = deque()
    for leaf in evicted:
        if leaf in num_children:
            continue
        node, length = leaf, 1
        while (parent := evicted[node]) in evicted and num_children[parent] == 1:
            node, length = parent, length + 1
        num_children[parent] -= 1
        branches.append((leaf, length))
    return branches
