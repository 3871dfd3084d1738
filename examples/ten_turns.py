"""A ten-turn conversation through the OpenAI SDK: per turn, what was cached and what was paid for.

    python examples/ten_turns.py [--base-url http://127.0.0.1:8000/v1] [--api-key KEY]

Every turn after the first should compute only its new tokens: the end of the last reply and the new question.
"""

import argparse
import time
from dataclasses import dataclass

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

SYSTEM = "You are a patient teacher. Answer in one or two sentences."
QUESTIONS = (
    "What is a prefix?",
    "Give one example from grammar.",
    "And one from mathematics.",
    "Which is older?",
    "Why do people like lists?",
    "Write two short lines of a poem about rivers.",
    "Make the second line rhyme.",
    "What is the mood of the poem?",
    "Say it in five words.",
    "Thank you. What did we talk about first?",
)


@dataclass(frozen=True)
class Turn:
    """Tokens of the prompt and of it from the cache; seconds to the first piece of text; the reply."""

    prompt: int
    cached: int
    time_to_first_token_s: float
    reply: str

    @property
    def new(self) -> int:
        return self.prompt - self.cached


def ask(client: OpenAI, model: str, messages: list[ChatCompletionMessageParam]) -> Turn:
    """One streamed turn, greedy."""
    started_at = time.monotonic()
    first_at: float | None = None
    pieces: list[str] = []
    usage = None
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        max_completion_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
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
    return Turn(usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0, waited_s, "".join(pieces))


def main() -> None:
    arguments = parse_arguments()
    client = OpenAI(base_url=arguments.base_url, api_key=arguments.api_key)
    model = client.models.list().data[0].id
    messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": SYSTEM}]
    turns: list[Turn] = []
    print(f"{model} at {arguments.base_url}\n")
    print(f"{'turn':>4} {'prompt':>7} {'cached':>7} {'new':>6} {'TTFT':>10}  reply")
    for number, question in enumerate(QUESTIONS, start=1):
        messages.append({"role": "user", "content": question})
        turn = ask(client, model, messages)
        messages.append({"role": "assistant", "content": turn.reply})
        turns.append(turn)
        milliseconds = f"{turn.time_to_first_token_s * 1000:.1f} ms"
        figures = f"{turn.prompt:>7} {turn.cached:>7} {turn.new:>6} {milliseconds:>10}"
        print(f"{number:>4} {figures}  {turn.reply[:50]!r}")
    prompt, cached = sum(turn.prompt for turn in turns), sum(turn.cached for turn in turns)
    print(f" all {prompt:>7} {cached:>7} {prompt - cached:>6} {'':>10}  {cached / prompt:.0%} from the cache")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
