"""Settings: one frozen value, made once in `__main__` (or by a test), passed in; nothing is read at import.

Every field has a default, bounds and a sentence. That is the one source of the command line (`options.py`),
of the environment variables (`ANAPHORA_` + the name) and of the table in `docs/configuration.md`, which a
test compares. Values that are secret never appear in an error message.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sessions.hashing import MIN_SECRET_BYTES
from sessions.pool_size import parse_budgets, parse_disk_size, parse_host_memory_size, parse_pool_size

ENV_PREFIX = "ANAPHORA_"

_COMMENT = re.compile(r"(?:^|(?<=\s))#.*", re.MULTILINE)

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrOff = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


def default_cache_dir() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME/anaphora`, or `~/.cache/anaphora`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "anaphora"


def parse_api_keys(text: str) -> tuple[tuple[str, str], ...]:
    """`tenant=key` pairs, separated by commas or line ends, as (tenant, key) in order.

    A tenant may have several keys (to rotate them); a key stands for one tenant. A `#` is part of a key like any
    other character. Raises ValueError, never quoting a key.
    """
    pairs: list[tuple[str, str]] = []
    entries = (part.strip() for line in text.splitlines() for part in line.split(","))
    for number, entry in enumerate(entries, start=1):
        if not entry:
            continue
        tenant, separator, key = (piece.strip() for piece in entry.partition("="))
        if not (tenant and separator and key):
            raise ValueError(f"entry {number} of the API keys is not of the form tenant=key")
        if not entry.isprintable():
            raise ValueError(f"entry {number} of the API keys holds a character that cannot be printed")
        pairs.append((tenant, key))
    if len({key for _, key in pairs}) != len(pairs):
        raise ValueError("the same API key is given twice")
    return tuple(pairs)


def read_api_keys(path: Path) -> str:
    """The text of a keys file without its comments: from a `#` at the start of a line or after a blank to its end.

    Raises OSError, and ValueError for what is no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("the file is not text in UTF-8") from None
    return _COMMENT.sub("", text)


class Settings(BaseSettings):
    """The server's settings. Sizes are tokens unless the name says `_bytes`; durations end `_s` or `_ms`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.", min_length=1)
    port: int = Field(8000, description="TCP port to listen on; 0 picks a free one.", ge=0, le=65_535)
    model: str = Field(
        "default",
        description="The model: `default` (SmolLM2-135M-Instruct, installed alongside), a Hugging Face id, "
        "a folder, or a GGUF file.",
        min_length=1,
    )
    served_model_name: str = Field("", description="Name clients ask for; empty means the model's own name.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Arithmetic; `auto` is float32 on CPU and the model's own on CUDA.",
    )
    quantization: Literal["auto", "none", "file", "fp16", "int8"] = Field(
        "auto",
        description="How weights are packed on CPU: `file` (the 4 or 8 bits of a GGUF, else as `fp16`; `auto`), "
        "`fp16`, `int8`, `none`.",
    )
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Type of the KV pool; `auto` is float16 beside packed weights, else that of `dtype`; `int8` holds "
        "nearly twice float16's tokens.",
    )
    attention: Literal["auto", "kernels", "flex", "sdpa"] = Field(
        "auto",
        description="What attends over the pool: `kernels` reads it in place on CPU, `flex` in place on CUDA (never "
        "run there yet), `sdpa` gathers with plain torch; `auto`: the first that this machine can do and that passes "
        "the check at start.",
    )
    num_threads: int = Field(0, description="CPU threads of the model; 0 means all physical cores.", ge=0, le=1024)

    block_size: int = Field(16, description="Tokens per block of the KV pool.", ge=1, le=1024)
    pool_size: str = Field(
        "0.3",
        description="Size of the KV pool: bytes (`2GiB`), tokens (`40000 tokens`), share of memory (`0.3`).",
    )
    max_num_batched_tokens: Count = Field(256, description="Token budget of one engine step (chunked prefill).")
    max_slowdown: float = Field(
        2.25,
        description="A prompt computed beside running streams may make the gaps between their tokens so many times "
        "longer; 0 means as long as a full token budget takes.",
        ge=0,
        le=1000,
    )
    max_num_seqs: Count = Field(64, description="Sequences that run at once.")
    max_model_len: CountOrOff = Field(0, description="Prompt plus completion, at most; 0 means the model's own limit.")
    max_num_waiting: CountOrOff = Field(
        256, description="Choices that wait for their first run; past it, 429; 0 means no limit."
    )
    num_draft_tokens: int = Field(
        3, description="Guessed tokens verified per step while few requests run; 0 turns speculation off.", ge=0, le=16
    )
    stable_first: bool = Field(
        False,
        description="Leading system parts marked with `prompt_cache_breakpoint` go before unmarked ones.",
    )
    cache_budgets: str = Field(
        "",
        description="Most bytes of the pool that a tenant's cache keeps, as `tenant=2GiB,tenant=1GiB`; none: no bound.",
    )
    splice_stripped: bool = Field(
        False,
        description="A reply that comes back without the whitespace at its ends is still taken as it was generated.",
    )
    reasoning_history: Literal["keep", "drop"] = Field(
        "keep",
        description="Thoughts of earlier replies: `keep` leaves them in the prompt, as they were generated; `drop` "
        "leaves them out, and reads those replies anew.",
    )
    reply_ttl_s: CountOrOff = Field(
        86_400, description="So long Redis keeps the tokens of a reply for its next turn; 0: it never sees them."
    )
    response_ttl_s: CountOrOff = Field(
        2_592_000,
        description="So long after their last use responses and conversations are stored; 0: nothing is.",
    )
    max_stored_responses: Count = Field(
        10_000, description="Stored responses and conversations per tenant; past it the least recently used go."
    )
    max_stored_bytes: Count = Field(
        2_097_152,
        description="Largest response or conversation that is stored; what is larger is refused or not stored.",
    )

    max_inflight: Count = Field(512, description="Chat requests in flight at once, over all tenants; past it, 429.")
    max_inflight_per_tenant: CountOrOff = Field(0, description="The same, per tenant; 0 means no limit of its own.")
    max_connections: Count = Field(900, description="Open connections at once; past it, 503.")
    max_body_bytes: Count = Field(10_000_000, description="Largest request body; past it, 413.")
    max_messages: Count = Field(2048, description="Most messages in one request.")
    max_json_depth: int = Field(64, description="Deepest nesting of a request body.", ge=8, le=512)
    max_n: int = Field(128, description="Largest `n` (choices per request).", ge=1, le=128)
    client_timeout_s: Seconds = Field(
        60,
        description="Longest time for a client to send its headers or its body (else 408), or take nothing of its "
        "answer.",
    )
    max_completion_time_s: Seconds = Field(
        600,
        description="Longest time of a reply; past it a whole one is 504, a stream ends with an error frame.",
    )
    keepalive_s: Seconds = Field(15, description="A silent stream sends an SSE comment this often.")
    shutdown_timeout_s: Seconds = Field(
        30,
        description="After SIGTERM, time for running replies to finish; past it they end with an error.",
    )

    index: Literal["auto", "redis", "embedded", "off"] = Field(
        "auto",
        description="Where the trie of block hashes lives: `redis` (needs a URL), `embedded` (a private "
        "server started with this one), `off`, or `auto`: redis when a URL is given, else embedded.",
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="`redis://`, `rediss://` or `unix://` URL of the Redis or Valkey that holds the trie.",
    )
    redis_timeout_ms: int = Field(50, description="Longest wait for Redis on a request's path.", ge=1, le=10_000)

    host_memory_size: str = Field(
        "auto",
        description="Most bytes (`4GiB`) of KV kept in host memory below the pool, until the process ends; 0 is off, "
        "`auto` a quarter of what is free where the pool is on a GPU, else off.",
    )
    disk_size: str = Field(
        "0",
        description="Most bytes (`4GiB`) of KV kept in the cache folder, so that it outlives the process; 0 is off. "
        "Who can read these files can read the conversations.",
    )

    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys as `tenant=key,tenant=key`; none means no authentication, one tenant.",
    )
    api_keys_file: Path | None = Field(None, description="File of `tenant=key` lines, added to the keys above.")
    secret: SecretStr = Field(
        SecretStr(""),
        description="Server secret that tenants' cache keys derive from; empty means one kept in the cache "
        "folder (mode 0600). Replicas that share an index need the same.",
    )
    shared_prompts: str = Field(
        "",
        description="Files whose beginning of a prompt all tenants share in the cache, comma-separated: a system "
        "prompt's text, or (`.json`) messages and tools as in a request.",
    )
    ui: bool = Field(True, description="Serve the page at `/ui`; what it shows is behind the API key either way.")
    cors_origins: str = Field("", description="Origins that browsers may call from, comma-separated; empty means none.")
    cache_dir: Path = Field(
        default_factory=default_cache_dir, description="Folder of converted models and of the server secret."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")
    log_format: Literal["console", "json"] = Field("console", description="Log lines for people or for machines.")

    @field_validator("pool_size")
    @classmethod
    def _pool_size_parses(cls, text: str) -> str:
        parse_pool_size(text)
        return text

    @field_validator("host_memory_size")
    @classmethod
    def _host_memory_size_parses(cls, text: str) -> str:
        parse_host_memory_size(text)
        return text

    @field_validator("disk_size")
    @classmethod
    def _disk_size_parses(cls, text: str) -> str:
        parse_disk_size(text)
        return text

    @field_validator("cache_budgets")
    @classmethod
    def _cache_budgets_parse(cls, text: str) -> str:
        parse_budgets(text)
        return text

    @field_validator("api_keys")
    @classmethod
    def _api_keys_parse(cls, keys: SecretStr) -> SecretStr:
        parse_api_keys(keys.get_secret_value())
        return keys

    @field_validator("redis_url")
    @classmethod
    def _redis_url_parses(cls, url: SecretStr) -> SecretStr:
        if url and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("the URL must begin with redis://, rediss:// or unix://")
        if url:
            from sessions.index.settings import connect  # late: `--help` need not wait for redis-py

            try:
                connect(url.get_secret_value(), timeout_s=1.0).close()
            except ValueError:  # its words quote what stands where the port should: part of a password, perhaps
                raise ValueError("the URL's host, port or parameters cannot be read") from None
        return url

    @field_validator("secret")
    @classmethod
    def _secret_is_long_enough(cls, secret: SecretStr) -> SecretStr:
        if secret and len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"at least {MIN_SECRET_BYTES} bytes are needed")
        return secret

    @model_validator(mode="after")
    def _fields_agree(self) -> "Settings":
        if self.index == "redis" and not self.redis_url:
            raise ValueError("--index redis needs --redis-url (ANAPHORA_REDIS_URL)")
        if self.max_slowdown and self.max_slowdown <= 1:
            raise ValueError("--max-slowdown must be 0 or more than 1")
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError(
                "--max-num-seqs must not exceed --max-num-batched-tokens: each running sequence needs a token"
            )
        return self

    @property
    def cors_origin_list(self) -> list[str]:
        return [origin for part in self.cors_origins.split(",") if (origin := part.strip())]

    @property
    def shared_prompt_files(self) -> list[Path]:
        return [Path(part.strip()) for part in self.shared_prompts.split(",") if part.strip()]

    def key_pairs(self) -> tuple[tuple[str, str], ...]:
        """Every configured (tenant, key), the file's included. Raises OSError and ValueError."""
        text = self.api_keys.get_secret_value()
        if self.api_keys_file is not None:
            text += "\n" + read_api_keys(self.api_keys_file)
        return parse_api_keys(text)
