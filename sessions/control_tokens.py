"""ControlTokens: which texts are control tokens, and how users' text is kept from becoming one. Pure.

content    "hi <|im_end|>"           a user writes a control token's text
neutral    "hi ▒|im_end|>"           its first character becomes a stand-in: a private-use code point that
                                     occurs nowhere in the input; the template runs on this
rendered   "<|im_start|>user hi ▒|im_end|><|im_end|>"
            └─ control ─┘└──── plain ────┘└control ┘     `find` sees what the template itself wrote
restored   "user hi <|im_end|>"      in the plain text only; offsets do not change
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any, Final

from sessions.types import TokenId

_PRIVATE_USE: Final = range(0xE000, 0xF900)
_ESCAPE: Final = re.compile(r"\\u(e[0-9a-f]{3}|f[0-8][0-9a-f]{2})")
_QUICK_CANDIDATES: Final = 16
_WINDOW: Final = 1 << 18
"""Characters that are looked at in one go: a few milliseconds in which no other thread runs."""
_MARKUP: Final = re.compile(r"<.+>|\[.+\]", re.DOTALL)


class NoStandInError(Exception):
    """The input uses so many private-use code points that none is left to stand in."""


@dataclass(frozen=True, slots=True)
class ControlToken:
    """An added token that only the template may write; the flags are those of `tokenizers.AddedToken`.

    lstrip, rstrip: the token swallows the whitespace on that side.
    single_word: it is one only where no word character adjoins.
    """

    id: TokenId
    text: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """`token` covers `[start, end)`, the whitespace it swallows included."""

    token: ControlToken
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class StandIns:
    """What stands for what in one rendering. `spare` and `hole` are two more code points that the input does not
    use."""

    of: dict[str, str]
    spare: str
    hole: str

    def unescape(self, text: str) -> str:
        """`text` as the template would have written it, had it escaped no stand-in."""
        for stand_in in self.of.values():
            text = text.replace(_escaped(stand_in), stand_in)
        return text

    def restore(self, text: str) -> str:
        for original, stand_in in self.of.items():
            text = text.replace(stand_in, original)
        return text


def is_control(text: str, *, special: bool) -> bool:
    """Special tokens and those that look like markup; never whitespace, which users write as well."""
    return not text.isspace() and (special or _MARKUP.fullmatch(text) is not None)


class ControlTokens:
    """The control tokens of one tokenizer, compiled. Immutable, so safe to share between threads."""

    def __init__(self, tokens: Iterable[ControlToken]) -> None:
        self.by_text = {token.text: token for token in tokens if token.text}
        self.ids = frozenset(token.id for token in self.by_text.values())
        texts = sorted(self.by_text)
        self._longest = max(map(len, texts), default=0)
        self._token = re.compile(_longest_match(texts) or r"(?!)")
        self._token_start = re.compile(_start_of_match(texts) or r"(?!)")
        self._first_char = re.compile(_any_of({text[0] for text in texts}))
        self._last_char = re.compile(_any_of({text[-1] for text in texts}))
        self._beginnings = {text[:end] for text in texts for end in range(1, len(text))}
        self._endings = {text[start:] for text in texts for start in range(1, len(text))}
        self._inside = "\0".join(text[1:-1] for text in texts)

    def at(self, text: str) -> ControlToken | None:
        """The control token that `text` is, without the whitespace it swallows."""
        return self.by_text.get(text) or self.by_text.get(text.strip())

    def find(self, text: str) -> Iterator[Match]:
        """Every control token in `text`, leftmost and longest first, as `tokenizers` matches added tokens."""
        taken = 0
        for match in self._matches(self._token, text):
            token, start, end = self.by_text[match[0]], match.start(), match.end()
            if start < taken or (token.single_word and _adjoins_word(text, start, end)):
                continue
            if token.lstrip:
                start = taken + len(text[taken:start].rstrip())
            if token.rstrip:
                end += _leading_whitespace(text, end)
            yield Match(token, start, end)
            taken = end

    def neutralise(self, values: list[Any]) -> tuple[list[Any], StandIns]:
        """`values` (strings, or JSON trees of them) with the dangerous characters of every string stood in
        for.

        The length of no string changes. Raises NoStandInError.
        """
        strings = list(_strings(values))
        dangers = {string: positions for string in strings if (positions := self._dangers(string))}
        originals = sorted({string[position] for string, positions in dangers.items() for position in positions})
        unused = unused_code_points(strings)
        try:
            spare, hole = next(unused), next(unused)
            stand_ins = {original: next(unused) for original in originals}
        except StopIteration:
            raise NoStandInError from None

        def neutral(string: str) -> str:
            pieces: list[str] = []
            at = 0
            for position in sorted(dangers[string]):
                pieces += string[at:position], stand_ins[string[position]]
                at = position + 1
            return "".join([*pieces, string[at:]])

        swapped = {string: neutral(string) for string in dangers}
        if swapped:
            values = [_map_strings(value, lambda string: swapped.get(string, string)) for value in values]
        return values, StandIns(stand_ins, spare, hole)

    def break_up(self, text: str) -> list[str]:
        """`text` cut after the first character of each control token's text, so that no piece holds one
        whole."""
        cuts = [0, *(match.end() for match in self._matches(self._token_start, text)), len(text)]
        return [text[start:end] for start, end in pairwise(cuts) if start < end]

    def _matches(self, pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
        """`pattern.finditer(text)` in windows, between which other threads may run. None looks further than a token
        is long.
        """
        at = 0
        while at < len(text):
            end = at + _WINDOW
            for match in pattern.finditer(text, at, end + self._longest):
                if match.start() >= end:
                    break
                at = match.end()
                yield match
            at = max(at, end)

    def _dangers(self, string: str) -> set[int]:
        """Positions to stand in for: a token starts there, or could with what the template writes beside the
        string.

        Templates strip what they are given, so "beside" means after stripping too.
        """
        positions = {match.start() for match in self._matches(self._token_start, string)}
        body = string.strip()
        if not body:
            return positions
        begin = len(string) - len(string.lstrip())
        end = begin + len(body)
        for match in self._first_char.finditer(string, max(begin, end - self._longest)):
            if string[match.start() :] in self._beginnings or string[match.start() : end] in self._beginnings:
                positions.add(match.start())
        for match in self._last_char.finditer(string, 0, min(len(string), begin + self._longest)):
            if string[: match.end()] in self._endings or string[begin : match.end()] in self._endings:
                positions.add(begin)
        if len(body) < self._longest and body in self._inside:
            positions.add(begin)
        return positions


def _longest_match(texts: Sequence[str]) -> str:
    """Regex source that matches the longest of `texts`: their trie, so that thousands of tokens cost one
    walk."""
    options = [re.escape(first) + _longest_match(rests) for first, rests in _by_first_character(texts)]
    if not options:
        return ""
    source = options[0] if len(options) == 1 and "" not in texts else f"(?:{'|'.join(options)})"
    return f"{source}?" if "" in texts else source


def _start_of_match(texts: Sequence[str]) -> str:
    """Regex source that consumes the first character of any of `texts`: overlapping ones are all seen."""
    return "|".join(f"{re.escape(first)}(?={_longest_match(rests)})" for first, rests in _by_first_character(texts))


def _by_first_character(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
    rests: dict[str, list[str]] = {}
    for text in texts:
        if text:
            rests.setdefault(text[0], []).append(text[1:])
    return sorted(rests.items())


def _any_of(characters: set[str]) -> str:
    return f"[{''.join(map(re.escape, sorted(characters)))}]" if characters else r"(?!)"


def _adjoins_word(text: str, start: int, end: int) -> bool:
    word = re.compile(r"\w")
    return bool((start and word.match(text, start - 1)) or word.match(text, end))


def _leading_whitespace(text: str, position: int) -> int:
    end = position
    while end < len(text) and text[end].isspace():
        end += 1
    return end - position


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(_strings(part) for item in value.items() for part in item)
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(_strings(part) for part in value)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map_strings(part, change) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(part, change) for part in value]
    return value


def unused_code_points(strings: Sequence[str]) -> Iterator[str]:
    """Private-use code points that no string holds, as themselves or escaped.

    A few are tried one by one, which is fast; an input that holds those pays for a set of its characters.
    """
    candidates = map(chr, _PRIVATE_USE)
    for candidate in islice(candidates, _QUICK_CANDIDATES):
        if not any(candidate in string or _escaped(candidate) in string for string in strings):
            yield candidate
    used: set[str] = set()
    for string in strings:
        for start in range(0, len(string), _WINDOW):
            used.update(string[start : start + _WINDOW])
        used.update(chr(int(match[1], 16)) for match in _ESCAPE.finditer(string))
    yield from (candidate for candidate in candidates if candidate not in used)


def _escaped(character: str) -> str:
    """As JSON with ASCII only, and as Python's repr: what a template may make of tools."""
    return f"\\u{ord(character):04x}"
