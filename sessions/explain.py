"""Explanation: why a prompt found no more of itself in the cache, down to the character. Pure. Promise P5.

    prompt     [ same tokens ............... | other tokens ........ ]
    held       [ in the pool ....... ]                                  what a request would reuse now
    closest    [ same tokens ............... | its own ... ]            the caller's earlier prompt that shares most

Nothing missed where `held` reaches the end of `closest`. Where it ends before that, what is between was lost. Else the
two diverge, at a token, which is a character of a message.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from sessions.reports import Divergence, Explanation, MissClass, TokensByTier

SNIPPET_CHARS: Final = 40
LEAST_SHARED_TOKENS: Final = 4
"""Two prompts that share less than this share the template's opening and nothing more."""

_VOLATILE: Final = (
    ("a UUID", re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)),
    (
        "a date or time",
        re.compile(r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d)?|\b\d{1,2}:\d\d(?::\d\d)?\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"),
    ),
    (
        "a date",
        re.compile(
            r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b|\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
        ),
    ),
    ("an identifier", re.compile(r"\b[0-9a-f]{12,}\b", re.IGNORECASE)),
    ("a number", re.compile(r"\b\d[\d,.]*\b")),
)
"""What tends to change with every request, the most telling first."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The first block after what is held was stored once."""

    reason: Literal["evicted", "expired", "budget", "dropped"]
    seconds_ago: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What was looked up. Counts are tokens of the prompt.

    grain: in how many tokens at once what is held is held: below the pool in blocks, so that less than one is no loss.
    shared: with the closest earlier prompt of the caller's.
    closest_ends: there is nothing of the closest after `shared`. tools_differ: from the closest's.
    is_alike: the closest is much the same conversation, though they part at the very beginning.
    was_said_before: replies in it are known from outside this process, which knows nothing of the caller's in it;
    sighting: then, how the conversation was answered before. index_is_down: others could not be asked.
    """

    num_tokens: int
    tiers: TokensByTier
    grain: int
    shared: int
    closest_ends: bool
    tools_differ: bool
    is_alike: bool
    lost: Lost | None
    was_said_before: bool
    sighting: Literal["here", "elsewhere", "other_model", "other_template"] | None
    index_is_down: bool

    @property
    def held(self) -> int:
        return self.tiers.held


def classify(found: Findings) -> MissClass:
    """One word for it. What was lost explains more than what differs: it comes first."""
    if found.held >= found.num_tokens - 1:
        return "hit"
    if found.lost is not None:
        return "evicted" if found.lost.reason == "budget" else found.lost.reason
    if found.shared >= found.held + max(2, found.grain):
        return "evicted"
    if (known := _known_from_outside(found)) is not None and found.closest_ends:
        return known
    if found.closest_ends and found.shared >= LEAST_SHARED_TOKENS:
        return "hit"
    if found.tools_differ:
        return "tools_changed"
    if found.shared >= LEAST_SHARED_TOKENS or found.is_alike:
        return "diverged"
    if known is not None:
        return known
    return "redis_unavailable" if found.index_is_down else "never_seen"


def _known_from_outside(found: Findings) -> MissClass | None:
    """What Redis tells of a conversation that this process knows nothing of."""
    match found.sighting:
        case "other_model":
            return "model_changed"
        case "other_template":
            return "template_changed"
        case "here":
            return "evicted"
        case "elsewhere":
            return "restarted"
        case None:
            return "restarted" if found.was_said_before else None


def explain(found: Findings, divergence: Divergence | None) -> Explanation:
    """divergence: where the prompt leaves the closest one, if it does."""
    kind = classify(found)
    shown = divergence if kind in ("diverged", "tools_changed") else None
    missed = 0 if kind == "hit" else found.num_tokens - found.held
    return Explanation(
        kind=kind,
        num_prompt_tokens=found.num_tokens,
        tiers=found.tiers,
        missed_tokens=missed,
        shared_tokens=found.shared,
        divergence=shown,
        lost_seconds_ago=found.lost.seconds_ago if found.lost else None,
        lost_after_idle_s=found.lost.idle_s if found.lost else None,
        lost_to=found.lost.reason if found.lost else None,
        advice=_advice(kind, found, shown),
    )


def _advice(kind: MissClass, found: Findings, divergence: Divergence | None) -> str:
    after = f"{found.num_tokens - max(found.shared, found.held):,} tokens"
    match kind:
        case "diverged" if divergence is not None:
            what = volatile(divergence.now, divergence.then)
            if what is None or divergence.is_last_message:
                return ""
            place = f"at character {divergence.offset} of {divergence.param}"
            return (
                f"{what[0].upper()}{what[1:]} {place} changes with every request; everything after it, {after}, cannot "
                "be shared: move it to the end, or mark a breakpoint before it."
            )
        case "tools_changed":
            return (
                f"The list of tools differs, and tools stand before every message: {after} cannot be shared. Send the "
                "same list each time."
            )
        case "evicted":
            return "The pool was too small for what was used since: raise --pool-size, pin the prefix, or set a ttl."
        case "expired":
            return "It was not used for as long as its time to live: set a longer ttl on a breakpoint, or pin it."
        case "model_changed":
            return "It was answered by another model, or in other arithmetic, whose KV is of no use here."
        case "template_changed":
            return "It was answered with another tokenizer or chat template, which make other tokens of it."
        case "restarted":
            return "This process has not computed it: set --disk-size, so that what was computed outlives a restart."
        case "redis_unavailable":
            return "Redis does not answer, so nobody knows what other replicas hold."
        case _:
            return ""


def volatile(now: str, then: str) -> str | None:
    """What kind of thing stands at the beginning of both texts and differs. None: nothing that looks like it."""
    for name, pattern in _VOLATILE:
        ours, theirs = pattern.search(now), pattern.search(then)
        if ours and theirs and min(ours.start(), theirs.start()) < SNIPPET_CHARS // 2 and ours[0] != theirs[0]:
            return name
    return None
