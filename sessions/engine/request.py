"""Request: one generation in the engine. Data and derivations; the scheduler changes it, nobody else.

    token_ids      [ prompt ................ | output ........ ]
    computed       [0 ........ num_computed_tokens)                 KV is in `block_table`
    block_table    [ block ][ block ][ block ][ bl..]               block i holds tokens [i*size, (i+1)*size)

There is no prefill or decode mode: a step computes tokens [num_computed_tokens, num_tokens), or as many as it may, and
draws the next token once it has caught up.
"""

from dataclasses import dataclass, field
from enum import Enum

from sessions.engine.block_table import BlockTable
from sessions.hashing import HashChain
from sessions.types import BlockHash, FinishReason, RequestId, SamplingParams


class RequestStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Request:
    """One prompt, one completion.

    chain: hashes of `token_ids`' whole blocks; its root carries model and tenant.
    max_tokens: output tokens at most, already clipped to the context.
    seed: 64-bit; with the position it determines every draw, so a preempted request draws the same tokens again.
    """

    id: RequestId
    token_ids: list[int]
    chain: HashChain
    params: SamplingParams
    max_tokens: int
    eos_token_ids: frozenset[int]
    seed: int
    prediction: tuple[int, ...] = ()
    """What the client expects the output to be: a source of drafts."""
    num_prompt_tokens: int = field(init=False)
    status: RequestStatus = RequestStatus.WAITING
    block_table: BlockTable = field(default_factory=BlockTable)
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    """Prompt tokens found in the pool at first admission; None before that."""
    admitted_at: float | None = None
    """time.monotonic() of the first admission."""
    is_predicted: bool = False
    """Did the drafts under way come from `prediction`?"""
    num_accepted_prediction_tokens: int = 0
    num_rejected_prediction_tokens: int = 0
    draft_pause: int = 0
    """Steps to come without drafts."""
    draft_misses: int = 0
    """Length of the next pause; grows while drafts are all wrong."""
    num_registered_blocks: int = 0
    """Leading blocks of `block_table` known to the pool's tree."""
    output_counts: dict[int, int] = field(default_factory=dict)
    """Output token id -> occurrences; kept only when a penalty needs it."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def root(self) -> BlockHash:
        return self.chain.root

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def has_penalty(self) -> bool:
        return bool(self.params.presence_penalty or self.params.frequency_penalty)

    def append(self, token_id: int) -> None:
        """The next token was drawn."""
        self.token_ids.append(token_id)
        self.chain.extend((token_id,))
        if self.has_penalty:
            self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1

    def finish_reason(self) -> FinishReason | None:
        """Why generation ends after the last appended token, if it does."""
        if not self.params.ignore_eos and self.token_ids[-1] in self.eos_token_ids:
            return "stop"
        if self.num_output_tokens >= self.max_tokens:
            return "length"
        return None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one step did for one request; the only thing that leaves the engine.

    num_cached_tokens: as in `Request`. error: set when the engine lost the request.
    prediction: how many tokens of the request's prediction were right, and wrong, so far.
    admitted_at: time.monotonic() when the engine first ran it.
    stored: hashes from the first block on, when this step made prompt or turn complete (BlockStored).
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    num_cached_tokens: int
    root: BlockHash
    stored: tuple[BlockHash, ...] = ()
    admitted_at: float | None = None
    error: str | None = None
    prediction: tuple[int, int] = (0, 0)
