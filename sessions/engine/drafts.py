"""Drafts: guesses of a request's next tokens, verified in the step that would have computed one token anyway.

At a few rows a step costs what its weights cost to read, so checking three guesses is nearly free. A guess costs no
model: it is what the client said to expect (`prediction`), or what the pool already holds after the same prefix (a
regenerated answer, an identical question, an agent repeating itself), or else what followed the last three tokens where
they stood before in this request's own text (prompt lookup, https://github.com/apoorvumang/prompt-lookup-decoding).
What a grammar forces (`{"name": "`) is no guess and always right: it is computed in one step, like a prompt.

    known      .. T T T                the last one not computed yet
    drafts            d0 d1 d2         step computes T d0 d1 d2 and draws a token after each
    drawn             t0 t1 t2 t3      kept while t == d, and one more: always at least t0

The draw at a position depends on the tokens before it and on (seed, position) alone, so the answer is the same tokens
with drafts and without, greedy or sampled. Pure; engine thread only.
"""

from array import array
from collections.abc import Sequence

from sessions.engine.block_pool import BlockPool
from sessions.engine.request import Request

MAX_FORCED_TOKENS = 64
"""Of one step and request."""

MAX_DRAFTING_SEQS = 4
"""More running requests than this fill a step's rows themselves: then drafts cost time."""

NGRAM = 3
"""Tokens that must have stood together before."""

LOOKUP_WINDOW = 8192
"""How many of the request's latest tokens are searched."""

WIDTH = array("I").itemsize

LONGEST_PAUSE = 32
"""Steps without drafts, at most, after drafts that were all wrong (1, 3, 7, ...)."""


class Drafter:
    """Proposes drafts and learns from each request whether they are worth it. `max_num_draft_tokens` 0: never."""

    def __init__(self, pool: BlockPool, max_num_draft_tokens: int) -> None:
        self._pool = pool
        self._max_num_draft_tokens = max_num_draft_tokens
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.num_forced_tokens = 0

    def propose(self, request: Request, limit: int, *, may_guess: bool = True) -> tuple[int, ...]:
        """Up to `limit` tokens that may follow the request's last; all certain unless `may_guess`."""
        limit = min(limit, request.max_tokens - request.num_output_tokens - 1)
        forced = request.constraint.forced(min(limit, MAX_FORCED_TOKENS)) if request.constraint is not None else ()
        request.are_drafts_forced = bool(forced)
        if forced or not may_guess:
            return forced
        drafts = self._guess(request, min(limit, self._max_num_draft_tokens))
        return drafts if request.constraint is None else drafts[: request.constraint.num_legal(drafts)]

    def _guess(self, request: Request, limit: int) -> tuple[int, ...]:
        if limit <= 0:
            return ()
        if request.draft_pause > 0:
            request.draft_pause -= 1
            return ()
        drafts = self._from_prediction(request, limit)
        request.is_predicted = bool(drafts)
        return drafts or self._from_pool(request, limit) or self._from_text(request, limit)

    def observe(self, request: Request, num_drafts: int, num_accepted: int) -> None:
        """A step tried `num_drafts` and kept `num_accepted` of them."""
        if request.are_drafts_forced:
            self.num_forced_tokens += num_accepted
            return
        if not num_drafts:
            return
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        if request.is_predicted:
            request.num_accepted_prediction_tokens += num_accepted
            request.num_rejected_prediction_tokens += num_drafts - num_accepted
        request.draft_misses = 0 if num_accepted else min(2 * request.draft_misses + 1, LONGEST_PAUSE)
        request.draft_pause = request.draft_misses

    def _from_prediction(self, request: Request, limit: int) -> tuple[int, ...]:
        """What the prediction says after the output's last tokens, looked for near where it would stand first."""
        if not request.prediction or not request.num_output_tokens:
            return request.prediction[:limit]
        count = min(NGRAM, request.num_output_tokens)
        last = request.token_ids[-count:]
        text = array("I", request.prediction).tobytes()
        at = find_tokens(text, last, max(0, request.num_output_tokens - count))
        if at < 0:
            at = find_tokens(text, last, 0)
        return request.prediction[at + count : at + count + limit] if at >= 0 else ()

    def _from_pool(self, request: Request, limit: int) -> tuple[int, ...]:
        if request.read_points is not None:
            return ()
        num_blocks = request.num_registered_blocks
        parent = request.block_table[num_blocks - 1] if num_blocks else None
        tail = tuple(request.token_ids[num_blocks * self._pool.block_size :])
        return self._pool.continuation(request.root, parent, tail, limit)

    def _from_text(self, request: Request, limit: int) -> tuple[int, ...]:
        if request.num_tokens <= NGRAM:
            return ()
        start = max(0, request.num_tokens - LOOKUP_WINDOW)
        text = request.token_ids[start:].tobytes()
        pattern = text[-NGRAM * WIDTH :]
        at = text.rfind(pattern, 0, len(text) - WIDTH)
        while at >= 0 and at % WIDTH:
            at = text.rfind(pattern, 0, at + len(pattern) - 1)
        if at < 0:
            return ()
        after = start + at // WIDTH + NGRAM
        drafts = request.token_ids[after : after + limit]
        while len(drafts) < limit:  # a repetition that has caught up with itself goes on repeating
            drafts.append(drafts[len(drafts) - (request.num_tokens - after)])
        return tuple(drafts)


def find_tokens(text: bytes, token_ids: Sequence[int], start: int) -> int:
    """Where `token_ids` first stand in `text` (bytes of array("I")) at or after token `start`; -1 if nowhere."""
    pattern = array("I", token_ids).tobytes()
    at = text.find(pattern, start * WIDTH)
    while at >= 0 and at % WIDTH:  # a match that straddles tokens
        at = text.find(pattern, at + 1)
    return at // WIDTH if at >= 0 else -1
