"""What one step computes: written by the scheduler, read by the runner. Values only."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sessions.engine.block import Block
from sessions.engine.request import Request, TokenScore


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`request` computes tokens [start, start + num_tokens) in this step, and its drafts after them.

    drafts: guesses of what follows the last known token; only where the step reaches it.
    """

    request: Request
    start: int
    num_tokens: int
    drafts: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.drafts)

    @property
    def is_stream(self) -> bool:
        """Does it draw one token after another, or is there more to compute before the next?"""
        return self.num_tokens == 1 and self.request.num_output_tokens > 0

    @property
    def samples(self) -> bool:
        """Does this step reach the last known token, so that its logits draw the next?"""
        return self.start + self.num_tokens == self.request.num_tokens


class Draw(NamedTuple):
    """A token to be drawn after `request`'s known tokens and `drafts`; `entry` is the index of its schedule entry."""

    entry: int
    request: Request
    drafts: tuple[int, ...]

    @property
    def position(self) -> int:
        return self.request.num_tokens + len(self.drafts)


class Computed(NamedTuple):
    """What a step made of one entry.

    token_ids: drawn, where the entry samples: one, and one more for every leading draft that was right.
    scores: one for each of them, if asked for. prompt_scores: of `Request.rows_to_score`.
    """

    token_ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()


class Load(NamedTuple):
    """`payload[i]` is the KV of `blocks[i]`: uint8 [len(blocks), block_bytes], as `KVCache.read_blocks` gave it."""

    blocks: list[Block]
    payload: npt.NDArray[np.uint8]


@dataclass(slots=True)
class Schedule:
    """One step.

    copies: (source, destination) blocks to copy before anything is written (copy-on-write tails).
    loads: blocks to fill from a lower tier, also before anything is written.
    """

    entries: list[Scheduled] = field(default_factory=list)
    copies: list[tuple[Block, Block]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
