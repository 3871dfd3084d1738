"""What a grammar costs and saves: decode tokens/s of the default model with one, beside none in the same run."""

import asyncio
import json
import statistics
import time
from typing import Any, Final

import click

from proxy.settings import default_cache_dir
from sessions.service import ChatService
from sessions.startup import ServiceOptions, open_service
from sessions.types import ChatRequest, Grammar, Message, SamplingParams

NAMES: Final = ("first_name", "last_name", "street", "city", "country")
PERSON: Final = {
    "type": "object",
    "properties": {name: {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"} for name in NAMES},
    "required": list(NAMES),
    "additionalProperties": False,
}
SCHEMAS: Final[dict[str, dict[str, Any] | None]] = {
    "none": None,
    "one long string: masks alone": {"type": "string", "minLength": 4000},
    "records: masks, and keys that are forced": {"type": "array", "items": PERSON, "minItems": 50},
}


@click.command()
@click.option("--model", default="default", show_default=True)
@click.option("--tokens", "num_tokens", default=200, show_default=True, help="Per reply.")
@click.option("--streams", default=(1, 8), multiple=True, show_default=True, help="Replies at once.")
@click.option("--repeats", default=3, show_default=True)
def grammar(model: str, num_tokens: int, streams: tuple[int, ...], repeats: int) -> None:
    """Decode tokens/s with a grammar, beside none."""
    asyncio.run(_compare(model, num_tokens, streams, repeats))


async def _compare(model: str, num_tokens: int, streams: tuple[int, ...], repeats: int) -> None:
    # Without drafts: what they guess right depends on the text.
    options = ServiceOptions(
        default_cache_dir(), model=model, pool_size="20000 tokens", index="off", num_draft_tokens=0
    )
    service = await open_service(options)
    for num_streams in streams:
        rates: dict[str, list[float]] = {name: [] for name in SCHEMAS}
        for repeat in range(repeats + 1):  # the first is not counted
            for name, schema in SCHEMAS.items():
                rate = await _tokens_per_s(service, schema, num_tokens, num_streams, repeat)
                rates[name] += [rate] if repeat else []
        none = statistics.median(rates["none"])
        print(f"{num_streams} streams")
        for name, measured in rates.items():
            median = statistics.median(measured)
            print(f"  {name:42} {median:7.1f} tokens/s  {median / none:5.2f}x")
    await service.close()


async def _tokens_per_s(
    service: ChatService, schema: dict[str, Any] | None, num_tokens: int, num_streams: int, seed: int
) -> float:
    """From the first token of any reply to the last one of all."""
    params = SamplingParams(
        seed=seed,
        max_tokens=num_tokens,
        ignore_eos=True,
        grammar=None if schema is None else Grammar("json_schema", json.dumps(schema)),
    )
    request = ChatRequest((Message("user", "Write down people and where they live."),), params, n=num_streams)
    generation = await service.start(request)
    began_at: float | None = None
    async for _ in generation:
        began_at = began_at or time.monotonic()
    elapsed_s = time.monotonic() - (began_at or 0.0)
    generation.close()
    return generation.usage().completion_tokens / elapsed_s
