"""What a segment is, wherever it lies: consecutive blocks of one path with their KV. Pure values, and the seam.

SegmentStore ──▶ Medium:   SegmentFolder   files, which outlive the process
                           SegmentMemory   memory of the host, which is faster
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sessions.types import BlockHash

SEGMENT_TOKENS: Final = 256
"""Tokens of a segment: some 6 MB of the default model, so that a disk works sequentially and segments stay few."""

TierName = Literal["host", "disk"]
Payload = npt.NDArray[np.uint8]


class BadSegment(Exception):
    """It is torn, corrupt, foreign or of another version; the message says which check failed."""


def reason_of(error: Exception) -> str:
    """Why a tier failed, in one line for a log. Of what should not happen only the kind: its message may quote data."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    known = (str(error).strip().splitlines() or [""])[0] if isinstance(error, MemoryError | RuntimeError) else ""
    return f"{type(error).__name__}: {known}" if known else type(error).__name__


class Entry(NamedTuple):
    """One block of a segment. token_bytes: its ids as `hashing.token_bytes` gives them."""

    block_hash: BlockHash
    token_bytes: bytes


class Anchor(NamedTuple):
    """What a segment hangs on: its path's root, and the block before its first; the root again if there is none. A root
    that begins after shared content has the last block of that before its first.

    tenant: the root that its tenant has without a salt, so that all of a tenant's is found, whatever its root.
    """

    root: BlockHash
    parent: BlockHash
    tenant: BlockHash


class Contents(NamedTuple):
    """What a segment says it holds. used_at_ns: when it was last written or read, wall clock."""

    anchor: Anchor
    entries: list[Entry]
    used_at_ns: int


@dataclass(frozen=True)
class SegmentShape:
    """What all segments of one store have in common. block_bytes: KV of a block, all layers."""

    block_size: int
    block_bytes: int

    @property
    def capacity(self) -> int:
        """Blocks per segment."""
        return max(1, SEGMENT_TOKENS // self.block_size)

    @property
    def stride(self) -> int:
        """Bytes that a block takes."""
        return self.block_bytes

    def segment_bytes(self, num_blocks: int) -> int:
        return num_blocks * self.stride


class Medium(Protocol):
    """Where segments lie, each under its name. It bounds, orders and indexes nothing: `SegmentStore` does.

    `append`, `cut`, `make_room` and `close` are called by one thread at a time, the others meanwhile too. All but
    properties may block.
    """

    @property
    def tier(self) -> TierName: ...

    @property
    def form(self) -> SegmentShape: ...

    @property
    def num_other_bytes(self) -> int:
        """What others left that counts in the same bound."""

    def make_room(self) -> None:
        """Give up the oldest of what others left; there is some. Raises OSError."""

    def found(self) -> tuple[Mapping[str, Contents], int]:
        """What an earlier process left, by name, and how many bad ones were removed. Raises OSError."""

    def append(self, name: str, anchor: Anchor, num_before: int, entries: Sequence[Entry], rows: Payload) -> None:
        """Add blocks behind the `num_before` that the segment has; none: a new one. rows: [len(entries), stride].

        A failure leaves it as it was. Raises OSError; FileNotFoundError if it is not there any more.
        """

    def cut(self, name: str, num_kept: int) -> None:
        """Keep the first blocks only, or none and no segment. What is gone already is gone. Raises OSError."""

    def read(self, name: str, anchor: Anchor, first: int, expected: Sequence[Entry]) -> Payload:
        """A copy of the KV of blocks [first, first + len(expected)), [len(expected), block_bytes]. Counts as a use.

        Raises OSError; FileNotFoundError if it is gone; BadSegment unless it holds just that.
        """

    def age_s(self, name: str) -> float:
        """Seconds since it was last written or read. Raises FileNotFoundError."""

    def names(self) -> set[str]: ...

    def close(self) -> None: ...
