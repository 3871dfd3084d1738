"""A ten-turn conversation through the OpenAI SDK: per turn, what was cached and what was paid for.

python examples/ten_turns.py [--base-url http://127.0.0.1:8000/v1] [--api-key KEY]
"""

import argparse
import time
from typing import Any

from openai import OpenAI

QUESTIONS = [
    "What is a prefix?", "Give one example from grammar.", "And one from mathematics.", "Which is older?",
    "Why do people like lists?", "Write two short lines of a poem about rivers.", "Make the second line rhyme.",
    "What is the mood of the poem?", "Say it in five words.", "Thank you. What did we talk about first?",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    client = OpenAI(base_url=arguments.base_url, api_key=arguments.api_key)
    model = client.models.list().data[0].id
    messages: list[Any] = [{"role": "system", "content": "You are a patient teacher. Answer in one or two sentences."}]
    print(f"{'turn':>4} {'prompt':>7} {'cached':>7} {'new':>5} {'TTFT ms':>8}  reply")
    total = cached_total = 0
    for turn, question in enumerate(QUESTIONS, 1):
        messages.append({"role": "user", "content": question})
        started, first, text, usage = time.perf_counter(), None, "", None
        stream = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=48, stream=True, stream_options={"include_usage": True}
        )
        for chunk in stream:
            if chunk.usage:
                usage = chunk.usage
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter()
                text += chunk.choices[0].delta.content
        assert usage is not None and usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        ttft = 1000 * ((first or time.perf_counter()) - started)
        total, cached_total = total + usage.prompt_tokens, cached_total + cached
        print(f"{turn:>4} {usage.prompt_tokens:>7} {cached:>7} {usage.prompt_tokens - cached:>5} {ttft:>8.0f}  {text[:60]!r}")
        messages.append({"role": "assistant", "content": text})
    print(f" all {total:>7} {cached_total:>7} {total - cached_total:>5}           {cached_total / total:.0%} of prompt tokens reused")


if __name__ == "__main__":
    main()
