"""Pace: how many prompt tokens a step may compute beside running streams. Pure; engine thread only.

    step of streams alone      [ streams ]                                 usual_s, their usual gap
    step beside a prompt       [ streams ][ prompt tokens ........ ]       usual_s + num_prompt_tokens * token_s
                                                                           <= max_slowdown * usual_s

Both times are measured as steps go by. So a long cold prompt slows streams down by a known factor instead of stopping
them for as long as a full token budget takes, which on a CPU is thirty times their gap. Where prompt tokens cost next
to nothing, as on a GPU, the token budget is reached first and nothing changes. Where prompts never end, they wait for a
step now and then (`MAX_BESIDE`), because what streams alone take changes with their number.
"""

from collections import deque
from statistics import median
from typing import Final

from sessions.engine.schedule import Schedule

LEAST_PROMPT_TOKENS: Final = 16
"""A prompt gets on by so many tokens a step at the least; all there is before its tokens are measured."""

MAX_BESIDE: Final = 32
"""Steps with prompts and streams in a row, before one of streams alone."""

_NUM_USUAL: Final = 15
"""Steps of streams alone whose median is the usual gap: one beside which a long prompt came in says nothing of it."""

_NUM_PRICES: Final = 5
"""Steps with prompts whose median is the price of a token: a pause of the machine is none, and three make a new one."""


class Pace:
    """max_slowdown: the gap of a stream beside a prompt over its usual one; 0 is no bound."""

    def __init__(self, max_slowdown: float) -> None:
        self._max_slowdown = max_slowdown
        self._alone: deque[float] = deque(maxlen=_NUM_USUAL)
        self._prices: deque[float] = deque(maxlen=_NUM_PRICES)
        self._num_beside = 0

    def num_prompt_tokens(self, budget: int) -> int:
        """How many of `budget` tokens prompts may have in a step that has streams."""
        if not self._max_slowdown:
            return budget
        if not self._alone or self._num_beside >= MAX_BESIDE:
            return 0
        if not self._prices:
            return min(budget, LEAST_PROMPT_TOKENS)
        spare_s, token_s = (self._max_slowdown - 1) * self._usual_s(), median(self._prices)
        if budget * token_s <= spare_s:
            return budget
        return min(budget, max(LEAST_PROMPT_TOKENS, int(spare_s / token_s)))

    def observe(self, schedule: Schedule, seconds: float) -> None:
        """A step took so long."""
        num_prompt_tokens = sum(entry.num_tokens for entry in schedule.entries if not entry.is_stream)
        has_streams = any(entry.is_stream for entry in schedule.entries)
        if not num_prompt_tokens:
            if has_streams:
                self._observe_streams(seconds)
        elif not has_streams:
            self._observe_prompt(num_prompt_tokens, seconds)
        elif self._alone:
            self._num_beside += 1
            self._observe_prompt(num_prompt_tokens, max(0.0, seconds - self._usual_s()))

    def _usual_s(self) -> float:
        return median(self._alone)

    def _observe_streams(self, seconds: float) -> None:
        if self._num_beside >= MAX_BESIDE:  # what was known is old
            self._alone.clear()
        self._alone.append(seconds)
        self._num_beside = 0

    def _observe_prompt(self, num_tokens: int, seconds: float) -> None:
        if num_tokens >= LEAST_PROMPT_TOKENS:  # fewer measure what a step costs rather than its tokens
            self._prices.append(seconds / num_tokens)
