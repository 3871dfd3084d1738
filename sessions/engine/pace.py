"""Pace: how many prompt tokens a step may compute beside running streams. Pure; engine thread only.

    step of streams alone      [ streams ]                                 usual_s, their usual gap
    step beside a prompt       [ streams ][ prompt tokens ........ ]       usual_s + num_prompt_tokens * token_s
                                                                           <= max_slowdown * usual_s

Both times are measured as steps go by. So a long cold prompt slows streams down by a known factor instead of stopping
them for as long as a full token budget takes, which on a CPU is thirty times their gap. Where prompt tokens cost next
to nothing, as on a GPU, the token budget is reached first and nothing changes. Where prompts never end, they wait for a
step now and then (`MAX_BESIDE`), because what streams alone take changes with their number.
"""

from typing import Final

from sessions.engine.schedule import Schedule

LEAST_PROMPT_TOKENS: Final = 16
"""A prompt gets on by so many tokens a step at the least; all there is before its tokens are measured."""

MAX_BESIDE: Final = 32
"""Steps with prompts and streams in a row, before one of streams alone."""

_WEIGHT: Final = 1 / 8
"""Of a new sample in a moving average."""

_WEIGHT_OF_WORSE: Final = 1 / 2
"""Of a prompt's tokens that took longer than they used to: a gap too long is worse than a prompt a little later."""

_LIMIT: Final = 2
"""Over the average, at which one that took longer still counts: the machine paused."""


class Pace:
    """max_slowdown: the gap of a stream beside a prompt over its usual one; 0 is no bound."""

    def __init__(self, max_slowdown: float) -> None:
        self._max_slowdown = max_slowdown
        self._usual_s: float | None = None
        self._token_s: float | None = None
        self._num_beside = 0

    def num_prompt_tokens(self, budget: int) -> int:
        """How many of `budget` tokens prompts may have in a step that has streams."""
        if not self._max_slowdown:
            return budget
        if self._usual_s is None or self._num_beside >= MAX_BESIDE:
            return 0
        if not self._token_s:
            return min(budget, LEAST_PROMPT_TOKENS)
        spare_s = (self._max_slowdown - 1) * self._usual_s
        return min(budget, max(LEAST_PROMPT_TOKENS, int(spare_s / self._token_s)))

    def observe(self, schedule: Schedule, seconds: float) -> None:
        """A step took so long."""
        num_prompt_tokens = sum(entry.num_tokens for entry in schedule.entries if not entry.is_stream)
        has_streams = any(entry.is_stream for entry in schedule.entries)
        if not num_prompt_tokens:
            if has_streams:
                self._observe_streams(seconds)
        elif not has_streams:
            self._observe_prompt(num_prompt_tokens, seconds)
        elif self._usual_s is not None:
            self._num_beside += 1
            self._observe_prompt(num_prompt_tokens, max(0.0, seconds - self._usual_s))

    def _observe_streams(self, seconds: float) -> None:
        if self._num_beside >= MAX_BESIDE:  # what was known is old
            self._usual_s = None
        self._usual_s = _moved(self._usual_s, seconds)
        self._num_beside = 0

    def _observe_prompt(self, num_tokens: int, seconds: float) -> None:
        if num_tokens >= LEAST_PROMPT_TOKENS:  # fewer measure what a step costs rather than its tokens
            self._token_s = _moved(self._token_s, seconds / num_tokens, _WEIGHT_OF_WORSE)


def _moved(average: float | None, sample: float, weight_of_worse: float = _WEIGHT) -> float:
    if average is None:
        return sample
    if sample > average:
        return average + weight_of_worse * (min(sample, _LIMIT * average) - average)
    return average + _WEIGHT * (sample - average)
