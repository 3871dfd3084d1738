"""What a ChatService is put together from: values and loaded parts, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sessions.engine.config import EngineConfig
from sessions.hashing import RootFields
from sessions.index import IndexSettings
from sessions.reports import LayerKV
from sessions.tiers import TierOptions
from sessions.tokenizer import Tokenizer
from sessions.types import SharedPrompt


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """Which Redis, if any, and for how long it may be waited for.

    client: the index client's other numbers; its `timeout_s` is `timeout_ms`.
    data: where an embedded server's data outlive it; None: nowhere.
    """

    mode: Literal["auto", "redis", "embedded", "off"] = "off"
    redis_url: str = ""
    timeout_ms: int = 50
    client: IndexSettings = field(default_factory=IndexSettings)
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What a ChatService is put together from."""

    model_id: str
    tokenizer: Tokenizer
    engine_config: EngineConfig
    root_fields: RootFields
    secret: bytes
    max_num_waiting: int
    index: IndexOptions = field(default_factory=IndexOptions)
    stable_first: bool = False
    splice_stripped: bool = False
    keeps_reasoning: bool = True
    budgets: Mapping[str, int] = field(default_factory=dict)
    """Blocks that a tenant's cache may keep."""
    bytes_per_token: int = 0
    kv_layers: tuple[LayerKV, ...] = ()
    kv_dtype: str = ""
    shared_prompts: tuple[SharedPrompt, ...] = ()
    tiers: TierOptions | None = None
    """Below the pool; None: none."""
    max_stored_bytes: int = 2 << 20
    """Of one response or conversation; how many, and for how long, says `index.client.keeping`."""
