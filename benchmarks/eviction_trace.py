"""A made-up day of chat traffic in token ids, repeatable by its seed: who asks what, when. Pure.

    apps       a few system prompts, some of them much more used than others
    sessions   begin at an app; each turn repeats the conversation and adds a message; pauses are log-normal (half of
               them under 80 seconds, one in twenty over ten minutes), and some sessions have one turn only
    one-shots  an app's prompt and a document, never asked again

Times are seconds from the start of the trace. No two texts share tokens unless one continues the other.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

PAUSE_MEDIAN_S: Final = 80.0
PAUSE_SIGMA: Final = 1.2
TOKENS_PER_SECOND: Final = 30.0
"""How fast replies are written."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request. prompt, reply: token ids; the next turn's prompt begins with both."""

    at: float
    ends_at: float
    prompt: list[int]
    reply: list[int]


@dataclass(frozen=True, slots=True)
class Shape:
    """num_calls: about how many requests. one_shots: share of arrivals that never come back."""

    num_calls: int = 3000
    duration_s: float = 7200.0
    one_shots: float = 0.5
    num_apps: int = 12
    turns: float = 7.0


def make_trace(seed: int, shape: Shape) -> list[Call]:
    """Requests in order of arrival."""
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    maker = _Maker(rng, shape)
    return sorted(maker.calls(), key=lambda call: call.at)


class _Maker:
    def __init__(self, rng: random.Random, shape: Shape) -> None:
        self._rng = rng
        self._shape = shape
        self._fresh = count()
        self._apps = [self._text(1200, 0.7) for _ in range(shape.num_apps)]

    def calls(self) -> Iterator[Call]:
        shape = self._shape
        num_arrivals = round(shape.num_calls / (shape.one_shots + (1 - shape.one_shots) * shape.turns))
        for _ in range(num_arrivals):
            at = self._rng.uniform(0, shape.duration_s)
            rank = min(int(self._rng.paretovariate(1.0)), shape.num_apps) - 1
            if self._rng.random() < shape.one_shots:
                yield self._call(at, self._apps[rank] + self._text(1500, 0.9), 200)
            else:
                yield from self._session(at, self._apps[rank])

    def _session(self, at: float, system: list[int]) -> Iterator[Call]:
        history = system
        while True:
            call = self._call(at, history + self._text(120, 1.0), 250)
            yield call
            if self._rng.random() < 1 / self._shape.turns:
                return
            history = call.prompt + call.reply
            at = call.ends_at + self._rng.lognormvariate(0, PAUSE_SIGMA) * PAUSE_MEDIAN_S

    def _call(self, at: float, prompt: list[int], num_reply: int) -> Call:
        reply = self._text(num_reply, 0.6)
        return Call(at, at + len(reply) / TOKENS_PER_SECOND, prompt, reply)

    def _text(self, median: int, sigma: float) -> list[int]:
        """Tokens that nothing else has, some `median` of them and at most ten times as many."""
        length = min(max(8, round(median * self._rng.lognormvariate(0, sigma))), 10 * median)
        return [next(self._fresh) for _ in range(length)]
