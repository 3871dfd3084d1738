"""What one step computes: written by the scheduler, read by the runner. Values only."""

from dataclasses import dataclass, field

from sessions.engine.block import Block
from sessions.engine.request import Request


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`request` computes tokens [start, start + num_tokens) in this step."""

    request: Request
    start: int
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Does this step reach the last known token, so that its logits draw the next?"""
        return self.start + self.num_tokens == self.request.num_tokens


@dataclass(slots=True)
class Schedule:
    """One step. `copies`: (source, destination) blocks to copy before anything is written (copy-on-write tails)."""

    entries: list[Scheduled] = field(default_factory=list)
    copies: list[tuple[Block, Block]] = field(default_factory=list)
