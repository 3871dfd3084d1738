"""Token ids to text, incrementally: Detokenizer, StopChecker, and TextStream that joins them. Pure.

Each is a small `decode(...)` / `flush()` transform. Whatever the chunking, the pieces join to `decode(all
ids)`, cut where the first stop string is complete and without a code point that is still incomplete at the end.
One per choice; its stop strings are compiled once per request (StopStrings). A token costs the same however many came
before it: a window of recent ids is decoded, never all.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_MAX_UTF8_TAIL: Final = 3
"""A code point that is still incomplete has at most 3 bytes, so at most 3 tokens."""
_MAX_UNSETTLED: Final = 16
"""So many tokens without settled text are not UTF-8 under way: they are bytes that never will be."""


def fitting(decode: Decode, ids: Sequence[int], text: str) -> tuple[int, int]:
    """How many leading `ids` say nothing but a beginning of `text`, and how many characters of it. (0, 0): none do.

    As many as can, and no more of them than say it: a token may end inside a code point, or go on past the text.
    """
    whole = decode(ids)
    if whole and text.startswith(whole):
        return len(ids), len(whole)
    length = min(len(text), len(whole))
    count = bisect_left(range(len(ids)), length, key=lambda last: len(decode(ids[: last + 1]))) + 1
    best = 0, 0
    for num_ids in range(max(1, count - _MAX_UTF8_TAIL - 1), min(len(ids), count + _MAX_UTF8_TAIL) + 1):
        said = decode(ids[:num_ids])
        if len(said) > best[1] and text.startswith(said):
            best = num_ids, len(said)
    return best


class Detokenizer:
    """Ids to text that never ends inside a code point.

        ids   … a b │ c d │ e f
                      │     └ unsettled: their text is not emitted yet, it ends in an incomplete code point
                      └ context: emitted last; what a decoder must see to know whether a space comes next

    decode: the tokenizer's own, special tokens left out.
    code_point_endings: ids of bytes, one of which makes any beginning of a code point whole.
    after: ids that stand before the first, and are not emitted.
    """

    __slots__ = ("_code_point_endings", "_context", "_context_text", "_decode", "_unsettled")

    def __init__(
        self, decode: Decode, code_point_endings: Sequence[Sequence[int]] = (), after: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._code_point_endings = code_point_endings
        self._context: list[int] = list(after)
        self._context_text = decode(self._context) if after else ""
        self._unsettled: list[int] = []

    @property
    def is_settled(self) -> bool:
        """Was the last token's text emitted, if it has one?"""
        return not self._unsettled

    def decode(self, token_id: int) -> str:
        """The text that `token_id` settles, maybe none."""
        self._unsettled.append(token_id)
        text = self._text_after_context(self._unsettled)
        if text and not text.endswith(_REPLACEMENT):
            return self._settle(len(self._unsettled), text)
        if self._context and not text:  # a special token: no text, and no decoder needs to see it again
            self._unsettled.clear()
            return ""
        if len(self._unsettled) < _MAX_UNSETTLED:
            return ""
        settled = len(self._unsettled) - _MAX_UTF8_TAIL
        return self._settle(settled, self._text_after_context(self._unsettled[:settled]))

    def flush(self) -> str:
        """What is left, but for a code point that was cut short; bytes that never were one read as U+FFFD.

        A text has no bytes to look at. So the code point is made whole, and taken away if that worked.
        """
        unsettled, self._unsettled = self._unsettled, []
        text = self._text_after_context(unsettled)
        if text.endswith(_REPLACEMENT):
            for ending in self._code_point_endings:
                whole = self._text_after_context([*unsettled, *ending])
                if not whole.endswith(_REPLACEMENT):
                    return whole[:-1]
        return text

    def _text_after_context(self, ids: Sequence[int]) -> str:
        return self._decode([*self._context, *ids])[len(self._context_text) :]

    def _settle(self, num_unsettled: int, text: str) -> str:
        self._context = self._unsettled[:num_unsettled]
        self._context_text = self._decode(self._context)
        del self._unsettled[:num_unsettled]
        return text


class StopStrings:
    """The stop strings of a request, compiled for all its choices. Immutable. An empty one never matches."""

    __slots__ = ("automata",)

    def __init__(self, stops: Sequence[str]) -> None:
        self.automata = tuple(_Automaton(stop) for stop in stops if stop)


class _Automaton:
    """Knuth-Morris-Pratt: constant work per character, however long or self-similar `stop`."""

    __slots__ = ("_fallback", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self._fallback = [0]  # _fallback[k]: longest beginning of `stop` that ends `stop[: k + 1]`, short of all of it
        for character in stop[1:]:
            self._fallback.append(self.advance(self._fallback[-1], character))

    def advance(self, num_matched: int, character: str) -> int:
        """Length of the longest beginning of `stop` that the text ends with, from what it was before `character`."""
        while num_matched and self.stop[num_matched] != character:
            num_matched = self._fallback[num_matched - 1]
        return num_matched + 1 if self.stop[num_matched] == character else 0


class StopChecker:
    """Cuts a stream of text before the stop string that is complete first (of several at once, the longest).

    Text that may yet turn out to begin a stop string is held back, so no part of a matched one ever leaves.
    """

    __slots__ = ("_held", "_matchers", "stopped")

    def __init__(self, stops: StopStrings) -> None:
        self._matchers = [_Matcher(automaton) for automaton in stops.automata]
        self._held = ""
        self.stopped = False

    def decode(self, text: str) -> str:
        """The part of what came in that is certain to be output. Empty for ever once `stopped`."""
        if self.stopped or not self._matchers:
            return "" if self.stopped else text
        buffer = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            matched = max((matcher.advance(character) for matcher in self._matchers), default=0)
            if matched:
                self.stopped, self._held = True, ""
                return buffer[: end - matched]
        keep = max(matcher.num_matched for matcher in self._matchers)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def flush(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """How much of one stop string the end of one choice's text is."""

    __slots__ = ("_automaton", "num_matched")

    def __init__(self, automaton: _Automaton) -> None:
        self._automaton = automaton
        self.num_matched = 0

    def advance(self, character: str) -> int:
        """The length of the stop string if `character` completes it, else 0."""
        self.num_matched = self._automaton.advance(self.num_matched, character)
        return self.num_matched if self.num_matched == len(self._automaton.stop) else 0


class TextStream:
    """Ids of one choice to the text its client sees.

    stopped: a stop string was matched; `num_tokens_used` ids were consumed for it, and later ones are not
    output. num_settled, num_shown: characters that the ids have certainly said, and that were let out.
    """

    __slots__ = ("_detokenizer", "_stop_checker", "num_settled", "num_shown", "num_tokens_used")

    def __init__(
        self,
        decode: Decode,
        stops: StopStrings,
        code_point_endings: Sequence[Sequence[int]] = (),
        after: Sequence[int] = (),
    ) -> None:
        self._detokenizer = Detokenizer(decode, code_point_endings, after)
        self._stop_checker = StopChecker(stops)
        self.num_tokens_used = 0
        self.num_settled = 0
        self.num_shown = 0

    @property
    def stopped(self) -> bool:
        return self._stop_checker.stopped

    @property
    def is_settled(self) -> bool:
        return self._detokenizer.is_settled

    def decode(self, ids: Sequence[int]) -> str:
        """Text that is certain to be output, maybe none. Ids after the one that completes a stop are
        ignored."""
        pieces = []
        for token_id in ids:
            if self.stopped:
                break
            self.num_tokens_used += 1
            settled = self._detokenizer.decode(token_id)
            self.num_settled += len(settled)
            pieces.append(self._stop_checker.decode(settled))
        text = "".join(pieces)
        self.num_shown += len(text)
        return text

    def flush(self) -> str:
        """The end of the text, once no more ids will come."""
        if self.stopped:
            return ""
        text = self._stop_checker.decode(self._detokenizer.flush()) + self._stop_checker.flush()
        self.num_shown += len(text)
        return text
