"""LogprobStream: the scores of one choice's tokens as TokenLogprob, each let out with the text it explains. Pure.

    tokens   [ let out ......... │ text is held back, it may begin a stop string │ inside a code point ]
                                 └ start, end: characters before and after it      └ end is not known yet

A token that a stop string cuts wholly is not shown, as its text is not; one that begins before the cut is, whole.
"""

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sessions.engine.request import TokenScore
from sessions.reports import TokenLogprob
from sessions.token_bytes import TokenBytes

_CONTINUATION = re.compile(rb"[\x80-\xbf]")
"""A byte that goes on with a code point."""


@dataclass(slots=True)
class _Waiting:
    logprob: TokenLogprob
    start: int
    end: int | None = None


class LogprobStream:
    """One per choice. Offsets are characters of the choice's text. opens: nothing stands before it."""

    def __init__(self, token_bytes: TokenBytes, *, opens: bool = True) -> None:
        self._token_bytes = token_bytes
        self._waiting: deque[_Waiting] = deque()
        self._num_settled = 0
        self._is_first = opens

    def of_prompt(self, token_ids: Sequence[int], scores: Sequence[TokenScore]) -> tuple[TokenLogprob, ...]:
        """Of all tokens of the prompt before it. scores: of all but the first, which follows nothing."""
        all_scores = (TokenScore(token_ids[0], math.nan), *scores)
        return tuple(token_logprob(self._token_bytes, score, opens=at == 0) for at, score in enumerate(all_scores))

    def add(self, score: TokenScore, *, num_settled: int, is_settled: bool) -> None:
        """The next token. num_settled: characters that are certain now; is_settled: its own are among them."""
        logprob = token_logprob(self._token_bytes, score, opens=self._is_first)
        self._waiting.append(_Waiting(logprob, self._num_settled))
        self._is_first = False
        self._num_settled = num_settled
        if is_settled:
            self._settle(num_settled)

    def _settle(self, end: int) -> None:
        """The latest tokens' text is certain together. Where each begins in it, their bytes say."""
        unsettled = [waiting for waiting in self._waiting if waiting.end is None]
        start, written = unsettled[0].start, b""
        for waiting in unsettled:
            piece = waiting.logprob.bytes or b""
            if not _CONTINUATION.match(piece):
                start = unsettled[0].start + len(written.decode("utf-8", "replace"))
            waiting.start, waiting.end = start, end
            written += piece

    def take(self, num_shown: int) -> tuple[TokenLogprob, ...]:
        """Those whose text is let out, now that `num_shown` characters are."""
        taken = []
        while self._waiting and (end := self._waiting[0].end) is not None and end <= num_shown:
            taken.append(self._waiting.popleft().logprob)
        return tuple(taken)

    def finish(self, num_shown: int, *, is_cut: bool) -> tuple[TokenLogprob, ...]:
        """The rest, once the text has ended; is_cut: at a stop string."""
        rest = [waiting.logprob for waiting in self._waiting if not is_cut or waiting.start < num_shown]
        self._waiting.clear()
        return tuple(rest)


def token_logprob(token_bytes: TokenBytes, score: TokenScore, *, opens: bool = False) -> TokenLogprob:
    """opens: the token is the first of its text."""

    def of(token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        written = token_bytes.of(token_id, opens=opens)
        text = token_bytes.name(token_id) if written is None else spelt(written)
        return TokenLogprob(text, written, logprob, top)

    return of(score.token_id, score.logprob, tuple(of(token_id, logprob) for token_id, logprob in score.top))


def spelt(written: bytes) -> str:
    r"""A token's text; where its bytes are none, `\xf0\x9f`, as OpenAI has it."""
    try:
        return written.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in written)
