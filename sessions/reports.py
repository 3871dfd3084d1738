"""Values that go back from the service: what a request was made of, what is said, found, counted. Frozen, no I/O.

What comes in is in `types.py`, whose conventions hold here too.
"""

from dataclasses import dataclass
from typing import Literal

from sessions.types import FinishReason, TokenId


@dataclass(frozen=True, slots=True)
class Move:
    """Something the canonical order put elsewhere, e.g. `messages[3]` to `messages[0]`."""

    source: str
    target: str


MissClass = Literal[
    "hit",
    "never_seen",
    "diverged",
    "evicted",
    "expired",
    "dropped",
    "tools_changed",
    "model_changed",
    "template_changed",
    "restarted",
    "redis_unavailable",
]
"""hit: all that was known was found. restarted: known to have been answered, by another process or before this one;
model_changed, template_changed: by one that computes otherwise, or renders or encodes otherwise."""


@dataclass(frozen=True, slots=True)
class TokensByTier:
    """Prompt tokens: in the pool; in memory of the host, after those; on disk, after those; on another replica, after
    those, as Redis says."""

    pool: int = 0
    host: int = 0
    disk: int = 0
    elsewhere: int = 0

    @property
    def held(self) -> int:
        """By this process."""
        return self.pool + self.host + self.disk


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token that differs from the closest earlier prompt, as a place in the request.

    param: e.g. `messages[0].content`; `tools`, or `template` where neither stands there. offset: characters of it.
    before: what both have before it. now, then: what follows in this prompt, and in the earlier one.
    is_last_message: nothing comes after it but the reply.
    """

    token: int
    param: str
    offset: int
    before: str
    now: str
    then: str
    is_last_message: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a prompt found no more of itself in the cache.

    missed_tokens: to be computed; none where all that was known was found.
    shared_tokens: with the closest earlier prompt.
    lost_to: why the first block that is missing went; lost_seconds_ago, lost_after_idle_s: when, and after how long
    without use. advice: one sentence, or none.
    """

    kind: MissClass
    num_prompt_tokens: int
    tiers: TokensByTier
    missed_tokens: int
    shared_tokens: int
    divergence: Divergence | None = None
    lost_to: str | None = None
    lost_seconds_ago: float | None = None
    lost_after_idle_s: float | None = None
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a prompt goes with that of an earlier request.

    shared_tokens: leading ones, in both. parts: they go on differently after those; else one begins the other.
    are_held: the pool and the tiers had all that is shared. have_same_tools: or else that is where they part.
    """

    shared_tokens: int
    parts: bool
    are_held: bool
    have_same_tools: bool


@dataclass(frozen=True, slots=True)
class PromptReport:
    """What was done with a request's messages before the model saw them.

    num_spliced: replies taken as the tokens that were generated. moves: what the canonical order put elsewhere.
    explanation: of what the cache had then, comparison: with an earlier request's prompt, if they were asked for.
    """

    num_spliced: int = 0
    moves: tuple[Move, ...] = ()
    explanation: Explanation | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True)
class MessagePlace:
    """Where the content of `messages[message]` stands in a prompt.

    start, end: in its text. first_token, end_token: tokens wholly before its beginning, and before its end.
    """

    message: int
    start: int
    end: int
    first_token: int
    end_token: int


@dataclass(frozen=True, slots=True)
class Rendering:
    """The prompt that a chat request would have. places: in its order; none where the template hides them."""

    text: str
    token_ids: tuple[TokenId, ...]
    places: tuple[MessagePlace, ...]
    report: PromptReport


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A piece of the call at `index` of a choice. id, name: on its first piece only; `arguments` is concatenated."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as the unmodified distribution saw it. top: alternatives, the likeliest first.

    bytes: of the token alone; one after another they are the text's. None: the token writes nothing. text: the same
    as text, or the token's name. logprob: NaN for a prompt's first token, which follows nothing.
    """

    text: str
    bytes: bytes | None
    logprob: float
    top: "tuple[TokenLogprob, ...]" = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one choice. `text` may be empty; `finish_reason` is set on a choice's last delta only."""

    choice: int
    text: str
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallPiece, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one chat request, over all its choices.

    cached_tokens: prompt tokens whose KV came from the pool or below (the best over the choices' shared prompt).
    restored_tokens: those of them that came from below it.
    cache_write_tokens: prompt tokens computed now and kept for later turns.
    accepted_prediction_tokens, rejected_prediction_tokens: tokens of the prediction that were tried as drafts.
    reasoning_tokens: completion tokens up to the end of the model's reasoning.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    restored_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Readiness:
    """What `/ready` reports.

    ready: new requests would be answered. model_loaded: the weights are there. engine_alive: its thread runs.
    draining: the server is going away. index: the state of the Redis trie; reported, not required.
    """

    ready: bool
    model_loaded: bool
    engine_alive: bool
    draining: bool
    index: str


@dataclass(frozen=True, slots=True)
class LayerKV:
    """What a layer keeps of a token: a K of `head_dim` and a V of `value_head_dim` numbers for each of `num_kv_heads`.

    num_heads: that read them; more than those where heads are grouped. sliding_window: tokens it sees; None is all.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    sliding_window: int | None = None


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What KV looks like here. dtype: of its numbers. bytes_per_token: K and V of all layers."""

    layers: tuple[LayerKV, ...]
    dtype: str
    bytes_per_token: int
    block_size: int
    num_blocks: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of gauges and monotonic counters for `/metrics`. Token counts; seconds since the epoch nowhere."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage: float = 0.0
    """Share of the pool's blocks that running requests hold, 0..1."""
    kv_cache_cached: float = 0.0
    """Share of the pool's blocks that hold KV somebody may reuse, 0..1."""
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_preemptions: int = 0
    num_forced_tokens: int = 0
    """Tokens that a grammar forced, computed many at once."""
    num_draft_tokens: int = 0
    """Guesses verified, and how many of them were right (`num_accepted_tokens`)."""
    num_accepted_tokens: int = 0
    num_evicted_blocks: int = 0
    num_steps: int = 0
    index_state: str = "off"
    """redis | embedded | off; read_only while writes are refused, connecting until first heard, else `down`."""
    index_errors: int = 0
    index_lookups: int = 0
    index_resyncs: int = 0
    index_dropped: int = 0
    index_elsewhere_tokens: int = 0
    """Prompt tokens that only another replica holds, as Redis says."""
    host_blocks: int = 0
    """Blocks and bytes in memory of the host now, below the pool."""
    host_bytes: int = 0
    host_written_blocks: int = 0
    host_dropped_paths: int = 0
    """Prompts and turns that could not be copied whole."""
    host_loaded_tokens: int = 0
    host_errors: int = 0
    disk_blocks: int = 0
    """Blocks and bytes on disk now."""
    disk_bytes: int = 0
    disk_written_blocks: int = 0
    disk_dropped_paths: int = 0
    """Prompts and turns that could not be written whole."""
    disk_loaded_tokens: int = 0
    disk_errors: int = 0
    """Reads and writes that failed; and files that were torn or corrupt (`disk_corrupt`)."""
    disk_corrupt: int = 0
