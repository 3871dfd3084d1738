"""EngineConfig: the numbers the engine is built with. Frozen; made once from settings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All sizes in tokens unless they say otherwise.

    block_size: tokens per block.
    num_blocks: blocks in the pool.
    max_num_batched_tokens: token budget of a step (chunked prefill).
    max_num_seqs: requests running at once.
    max_model_len: prompt plus completion of one request.
    max_slowdown: gap between two tokens of a stream beside a prompt, over its usual one (`pace`); 0 is no bound.
    max_num_draft_tokens: guesses verified per step and request (`drafts`); 0 is none.
    """

    block_size: int = 16
    num_blocks: int = 1024
    max_num_batched_tokens: int = 256
    max_num_seqs: int = 64
    max_model_len: int = 8192
    max_slowdown: float = 2.25
    max_num_draft_tokens: int = 3

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks", "max_num_batched_tokens", "max_num_seqs", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_slowdown and self.max_slowdown <= 1:
            raise ValueError(f"max_slowdown must be 0 or more than 1, not {self.max_slowdown}")
        if self.max_num_draft_tokens < 0:
            raise ValueError(f"max_num_draft_tokens must be at least 0, not {self.max_num_draft_tokens}")
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError("max_num_seqs must not exceed max_num_batched_tokens: a step runs one token per sequence")

    @property
    def max_pinned_blocks(self) -> int:
        """Half of the pool, and never so much that the longest request would find no room."""
        num_longest = -(-(self.max_model_len + 1) // self.block_size) + 1
        return max(0, min(self.num_blocks // 2, self.num_blocks - num_longest))

    @property
    def pool_tokens(self) -> int:
        return self.num_blocks * self.block_size
