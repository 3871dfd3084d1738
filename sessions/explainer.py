"""Explainer: looks up what `explain` judges: pool, tiers, other replicas, and the caller's own earlier prompts.

Event loop; the pool is asked between two steps. Everything is looked up under the caller's own roots, but what the
operator declared shared, which is everybody's.
"""

import asyncio
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from sessions.conversation import Turn
from sessions.engine.block_pool import BlockPool
from sessions.engine.loop import Engine
from sessions.engine.losses import Loss
from sessions.explain import LEAST_SHARED_TOKENS, SNIPPET_CHARS, Findings, Lost, explain
from sessions.hashing import HashChain
from sessions.index import PrefixIndex
from sessions.prompting import Prompted, Prompter, scope_of
from sessions.replies import Replies
from sessions.reports import Comparison, Divergence, Explanation, TokensByTier
from sessions.sightings import Sightings
from sessions.tiers import TierStack
from sessions.tokenizer import Tokenizer
from sessions.transcripts import Transcript
from sessions.types import ChatRequest

MAX_COMPARED: Final = 256
"""Earlier prompts that an explanation looks at."""
MAX_COMPARED_AT_ONCE: Final = 100_000
"""Tokens that are compared before others have the event loop: less than a millisecond."""
SNIPPET_TOKENS: Final = 24
ALIKE_CHARS: Final = 48


@dataclass(frozen=True, slots=True)
class _Held:
    """What there is of a prompt. loss: of the first block that is neither in the pool nor below it. then: what the pool
    stores after the part that it holds, on another branch."""

    tiers: TokensByTier
    loss: Loss | None
    then: tuple[int, ...]


class Explainer:
    """Parts are the service's own."""

    def __init__(
        self,
        engine: Engine,
        prompter: Prompter,
        replies: Replies,
        sightings: Sightings,
        index: PrefixIndex,
        tiers: TierStack,
        tokenizer: Tokenizer,
    ) -> None:
        self._engine = engine
        self._pool: BlockPool = engine.scheduler.pool
        self._prompter = prompter
        self._replies = replies
        self._sightings = sightings
        self._index = index
        self._tiers = tiers
        self._tokenizer = tokenizer

    async def explain(self, request: ChatRequest, prompted: Prompted) -> Explanation:
        """prompted: of a request that `wants_explanation`, so that places in it are known."""
        chain, token_ids = prompted.chain, prompted.token_ids
        size = self._pool.block_size
        known = await self._known(chain, token_ids)
        tiers, held = known.tiers, known.tiers.held
        num_elsewhere = await self._index.num_elsewhere(chain, held // size)
        is_alike, shared, then = await self._closest(prompted)
        if shared <= held:  # pool and tiers know prompts of which no transcript is left
            theirs = known.then if held == tiers.pool else ()
            shared, then = held, theirs if shared < held else then or theirs
        declared = chain.num_shared_blocks * size
        is_news = shared <= declared or shared < LEAST_SHARED_TOKENS
        found = Findings(
            num_tokens=len(token_ids),
            tiers=replace(tiers, elsewhere=num_elsewhere * size),
            grain=1 if held == tiers.pool else size,
            shared=shared,
            closest_ends=not then,
            tools_differ=await self._tools_differ(prompted, shared, scope_of(request)),
            lost=_lost(known.loss, time.monotonic()),
            is_alike=is_alike,
            was_said_before=is_news and prompted.report.num_spliced > 0,
            sighting=await self._sightings.look(request, prompted.opening.conversation) if is_news else None,
            index_is_down=self._index.state == "down",
        )
        return explain(found, await asyncio.to_thread(self._divergence, request, prompted, shared, then))

    async def compare(self, prompted: Prompted, earlier: Prompted) -> Comparison:
        """prompted: of a request that is about to start. earlier: of one that may have run long ago."""
        chain, token_ids = prompted.chain, prompted.token_ids
        known = await self._known(chain, token_ids)
        shared = _num_shared(token_ids, earlier.token_ids)
        return Comparison(
            shared_tokens=shared,
            parts=shared < min(len(token_ids), len(earlier.token_ids)),
            are_held=known.tiers.held + 1 >= shared,
            have_same_tools=prompted.opening.conversation.schemas == earlier.opening.conversation.schemas,
        )

    def _by_tier(self, chain: HashChain, num_in_pool: int) -> TokensByTier:
        """Below the pool are whole blocks only, so what follows its last whole one may be in a tier as well."""
        size = self._pool.block_size
        end, num_blocks = num_in_pool, num_in_pool // size
        tokens = {}
        for tier, num_held in self._tiers.num_held(chain, num_blocks).items():
            num_blocks += num_held
            tokens[tier] = max(0, num_blocks * size - end)
            end += tokens[tier]
        return TokensByTier(num_in_pool, tokens.get("host", 0), tokens.get("disk", 0))

    def _look(self, chain: HashChain, token_ids: Sequence[int]) -> _Held:
        """Engine thread."""
        hashes = chain.hashes
        match = self._pool.match_prompt(chain, token_ids)
        num_blocks = len(match.blocks)
        num_held = num_blocks * self._pool.block_size + match.num_tail_tokens
        tiers = self._by_tier(chain, num_held)
        first_missing = tiers.held // self._pool.block_size
        loss = self._pool.loss(hashes[first_missing]) if first_missing < len(hashes) else None
        last = match.blocks[-1] if match.blocks else None
        same = tuple(token_ids[num_held - match.num_tail_tokens : num_held])
        then = (
            self._pool.continuation(chain.branch_at(num_blocks), last, same, SNIPPET_TOKENS)
            if num_held >= LEAST_SHARED_TOKENS
            else ()
        )
        return _Held(tiers, loss, then)

    async def _closest(self, prompted: Prompted) -> tuple[bool, int, tuple[int, ...]]:
        """Of the caller's earlier prompts, with their replies, the one that shares most leading tokens with this one.

        Returns whether it is much the same conversation for all that, how many tokens, and what it goes on with.
        """
        ours, turns = prompted.token_ids, prompted.opening.conversation.turns
        most = False, 0
        then: tuple[int, ...] = ()
        num_compared = 0
        for transcript in list(self._recent(prompted)):
            theirs, best = transcript.known.ids, most[1]
            if best >= LEAST_SHARED_TOKENS and ours[best : best + 1] != theirs[best : best + 1]:
                continue  # this one shares no more
            shared = _num_shared(ours, theirs)
            num_compared += shared
            if num_compared > MAX_COMPARED_AT_ONCE:
                num_compared = await asyncio.sleep(0, 0)
            found = shared < LEAST_SHARED_TOKENS and _are_alike(turns, transcript.turns), shared
            if (found[1] >= LEAST_SHARED_TOKENS, *found) > (most[1] >= LEAST_SHARED_TOKENS, *most):
                most, then = found, tuple(theirs[shared : shared + SNIPPET_TOKENS])
        return *most, then

    def _recent(self, prompted: Prompted) -> Iterator[Transcript]:
        return islice(self._replies.recent(prompted.chain.root), MAX_COMPARED)

    async def _tools_differ(self, prompted: Prompted, shared: int, scope: str) -> bool:
        """Was the same conversation seen with other tools, so that it parts where they stand?"""
        conversation = prompted.opening.conversation
        if prompted.prompt.contents:
            num_before = await asyncio.to_thread(self._tokens_before_contents, prompted, scope)
            if shared > num_before:
                return False
        for transcript in self._recent(prompted):
            theirs = transcript.conversation
            if theirs.turns[:1] == conversation.turns[:1] and theirs.schemas != conversation.schemas:
                return True
        return False

    def _tokens_before_contents(self, prompted: Prompted, scope: str) -> int:
        start = prompted.prompt.contents[0].start
        return self._tokenizer.tokens_before(prompted.prompt, [start], scope=scope, spliced=prompted.spliced)[0]

    def _divergence(
        self, request: ChatRequest, prompted: Prompted, shared: int, then: Sequence[int]
    ) -> Divergence | None:
        if not then or shared >= len(prompted.token_ids):
            return None
        param, offset, at = self._prompter.place(prompted, request, shared)
        text = prompted.prompt.text
        return Divergence(
            token=shared,
            param=param,
            offset=offset,
            before=text[max(0, at - SNIPPET_CHARS) : at],
            now=text[at : at + SNIPPET_CHARS],
            then=self._tokenizer.written(then)[:SNIPPET_CHARS],
            is_last_message=param == f"messages[{prompted.opening.conversation.sources[-1]}].content",
        )

    async def _known(self, chain: HashChain, token_ids: Sequence[int]) -> _Held:
        return await asyncio.wrap_future(self._engine.call(lambda: self._look(chain, token_ids)))


def _are_alike(ours: Sequence[Turn], theirs: Sequence[Turn]) -> bool:
    """Do both begin with a message that ends the same? Then what differs, differs at its beginning."""
    ends = ours[0].content[-ALIKE_CHARS:], theirs[0].content[-ALIKE_CHARS:]
    return len(ends[0]) == ALIKE_CHARS and ends[0] == ends[1]


def _num_shared(ours: "array[int]", theirs: "array[int]") -> int:
    """Leading tokens that the two share. Ever longer stretches, then ever shorter ones: O(shared), in C."""
    longest = min(len(ours), len(theirs))
    shared, step = 0, 32
    while shared < longest and ours[shared : shared + step] == theirs[shared : shared + step]:
        shared, step = shared + step, 2 * step
    low, high = min(shared, longest), min(shared + step, longest)
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _lost(loss: Loss | None, now: float) -> Lost | None:
    return None if loss is None else Lost(loss.reason, now - loss.at, loss.age_s)
