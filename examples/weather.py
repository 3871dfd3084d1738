"""One system prompt, five cities, with the cache and without: same greedy answers, TTFT side by side.

    python examples/weather.py [--base-url http://127.0.0.1:8000/v1] [--api-key KEY]

"Without" gives every request a `cache_salt` of its own, which keeps it from every prefix cached before.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from uuid import uuid4

from openai import OpenAI

SYSTEM = (
    "You are a weather assistant for travellers. You are given the name of a city, and you describe the "
    "weather that a visitor can expect there in the month of May: the usual temperature by day and by "
    "night, how often it rains, how strong the wind is, and which clothes to pack. Be friendly, be brief, "
    "use plain words, and never give more than three sentences."
)
CITIES = ("Lisbon", "Oslo", "Nairobi", "Kyoto", "Toronto")


@dataclass(frozen=True)
class Answer:
    """The reply's text, its prompt's tokens, of them from the cache, and seconds to the first text."""

    text: str
    prompt: int
    cached: int
    time_to_first_token_s: float


def ask(client: OpenAI, model: str, city: str, cache_salt: str) -> Answer:
    """One streamed greedy answer. Requests share a cache only under the same salt."""
    started_at = time.monotonic()
    first_at: float | None = None
    pieces: list[str] = []
    usage = None
    stream = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"The weather in {city}, please."},
        ],
        temperature=0,
        max_completion_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"cache_salt": cache_salt},
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.content:
                first_at = first_at or time.monotonic()
                pieces.append(choice.delta.content)
    if usage is None or usage.prompt_tokens_details is None:
        raise SystemExit("the server sent no usage")
    waited_s = (first_at or time.monotonic()) - started_at
    return Answer("".join(pieces), usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0, waited_s)


def main() -> None:
    arguments = parse_arguments()
    client = OpenAI(base_url=arguments.base_url, api_key=arguments.api_key)
    model = client.models.list().data[0].id
    shared_salt = uuid4().hex  # fresh, so that an earlier run of this example does not help this one
    print(f"{model} at {arguments.base_url}\n")
    print(f"{'city':<9} {'prompt':>6} │ {'cached':>6} {'TTFT':>9} │ {'cached':>6} {'TTFT':>9} │ answers")
    print(f"{'':<9} {'':>6} │ {'with the cache':>16} │ {'without':>16} │")
    pairs: list[tuple[Answer, Answer]] = []
    for city in CITIES:
        without = ask(client, model, city, uuid4().hex)
        with_cache = ask(client, model, city, shared_salt)
        pairs.append((with_cache, without))
        verdict = "same" if with_cache.text == without.text else "DIFFERENT"
        print(f"{city:<9} {with_cache.prompt:>6} │ {cells(with_cache)} │ {cells(without)} │ {verdict}")
    warm_s = statistics.median(with_cache.time_to_first_token_s for with_cache, _ in pairs[1:])
    cold_s = statistics.median(without.time_to_first_token_s for _, without in pairs[1:])
    print(f"\nafter the first city, median TTFT {warm_s * 1000:.1f} ms with the cache, {cold_s * 1000:.1f} ms without")
    if any(with_cache.text != without.text for with_cache, without in pairs):
        sys.exit("the cache changed an answer")


def cells(answer: Answer) -> str:
    milliseconds = f"{answer.time_to_first_token_s * 1000:.1f} ms"
    return f"{answer.cached:>6} {milliseconds:>9}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
