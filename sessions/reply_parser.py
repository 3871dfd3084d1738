"""ReplyParser: a reply's text into what its client gets: text, thoughts, and calls, piece by piece. Pure.

    <think>…</think>   text   <tool_call>{"name": "f", "arguments": {…}}</tool_call>   text
    └─ reasoning ───┘  └text┘            └ id, name ┘              └ arguments, as they come

However the text is cut into pieces, the results join to the same. Arguments are the text that the model wrote. What
looks like a call and is none (no JSON, no known name) stays text; so does everything if no tool may be called.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sessions.call_scanner import CallScanner, ObjectScanner
from sessions.dialect import THINK_CLOSE, THINK_OPEN, TOOL_CALL_END, Dialect
from sessions.reports import ToolCallPiece


@dataclass(slots=True)
class ReplyPiece:
    """What some of a reply's text says; reasoning comes before text, text before calls."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCallPiece] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reading:
    """A whole reply. calls: (name, arguments) of each."""

    text: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, pieces: Sequence[ReplyPiece]) -> "Reading":
        calls: list[list[str]] = []
        for piece in (call for each in pieces for call in each.calls):
            if piece.name is not None:
                calls.append([piece.name, ""])
            calls[-1][1] += piece.arguments
        return cls(
            "".join(piece.text for piece in pieces),
            "".join(piece.reasoning for piece in pieces),
            tuple((name, arguments) for name, arguments in calls),
        )


class ReplyParser:
    """One per choice.

    names: of the functions that may be called; without any, no call is looked for. is_thinking: the prompt ends inside
    thoughts. only_calls: beside thoughts nothing else can be in it, so text is a call that was cut short, and nobody's.
    max_calls: the reply is over after so many. new_id: draws a call's id.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        names: Iterable[str] = (),
        is_thinking: bool = False,
        only_calls: bool = False,
        max_calls: int | None = None,
        new_id: Callable[[], str] = str,
    ) -> None:
        self._dialect = dialect
        self._names = frozenset(names)
        self._only_calls = only_calls
        self._max_calls = max_calls
        self._new_id = new_id
        self._buffer = ""
        self._begun: list[str] = []  # what was taken off the buffer and may be a call; else it was text after all
        self._scanner = CallScanner((), is_bare=False)
        self._object = ObjectScanner()
        self._out = [ReplyPiece()]
        self._skips_space = False
        self._is_final = False
        self._state: Callable[[], bool] = self._content if not dialect.thinks else self._opening
        if is_thinking and dialect.thinks:
            self._state, self._skips_space = self._thoughts, True
        elif not dialect.thinks:
            self._enter_content(skips_space=False)
        self.num_calls = 0
        self.is_done = False

    @property
    def is_thinking(self) -> bool:
        return self._state == self._thoughts

    def decode(self, text: str) -> list[ReplyPiece]:
        """What is certain of the reply now. Nothing more once `is_done`."""
        if not self.is_done:
            self._buffer += text
            self._run()
        return self._taken()

    def flush(self) -> list[ReplyPiece]:
        """The rest, once no more text will come."""
        self._is_final = True
        if not self.is_done:
            self._run()
        return self._taken()

    def _run(self) -> None:
        while self._state():
            pass

    def _taken(self) -> list[ReplyPiece]:
        out, self._out = self._out, [ReplyPiece()]
        return [piece for piece in out if piece.text or piece.reasoning or piece.calls]

    # -- what comes out --

    def _say(self, text: str) -> None:
        if text and not self._only_calls:
            if self._out[-1].calls:
                self._out.append(ReplyPiece())
            self._out[-1].text += text

    def _think(self, text: str) -> None:
        self._out[-1].reasoning += text

    def _call(self, piece: ToolCallPiece) -> None:
        self._out[-1].calls.append(piece)

    # -- states: each takes what it can off the buffer, and says whether another should look at the rest --

    def _opening(self) -> bool:
        """Thoughts begin a reply, or there are none."""
        rest = self._buffer.lstrip()
        if rest.startswith(THINK_OPEN):
            self._buffer, self._skips_space = rest[len(THINK_OPEN) :], True
            self._state = self._thoughts
            return True
        if THINK_OPEN.startswith(rest) and not self._is_final:
            return False
        self._enter_content(skips_space=False)
        return True

    def _thoughts(self) -> bool:
        self._skip_space()
        end = self._buffer.find(THINK_CLOSE)
        if end >= 0:
            self._think(self._buffer[:end].rstrip())
            self._buffer = self._buffer[end + len(THINK_CLOSE) :]
            self._enter_content(skips_space=True)
            return True
        held = 0 if self._is_final else _held(self._buffer, THINK_CLOSE)
        self._think(self._take(len(self._buffer) - held))
        return False

    def _content(self) -> bool:
        """Text up to where a call begins, and the space before that with it."""
        self._skip_space()
        marker = self._dialect.call_start
        start = self._buffer.find(marker)
        if start >= 0:
            text = self._buffer[:start].rstrip()
            self._say(text)
            begun = self._buffer[len(text) : start + len(marker)]
            self._buffer = self._buffer[start + len(marker) :]
            if self._dialect.call_format != "mistral":
                return self._enter_call(begun)
            self._begun, self._state = [begun], self._array
            return True
        self._say(self._take(len(self._buffer) - (0 if self._is_final else _held(self._buffer, marker))))
        return False

    def _plain(self) -> bool:
        self._skip_space()
        self._say(self._take(len(self._buffer)))
        return False

    def _bare(self) -> bool:
        """Llama: a call is the whole reply, with or without a marker."""
        rest = self._buffer.lstrip()
        marker = self._dialect.call_start
        if rest.startswith(marker):
            return self._enter_call(self._take(len(self._buffer) - len(rest) + len(marker)))
        if rest.startswith("{"):
            return self._enter_call(self._take(len(self._buffer) - len(rest)))
        if marker.startswith(rest) and not self._is_final:
            return False
        self._state = self._plain
        return True

    def _array(self) -> bool:
        """Mistral: calls stand in a list."""
        rest = self._buffer.lstrip()
        if not rest and not self._is_final:
            return False
        if not rest.startswith("["):
            return self._no_call()
        return self._enter_call(self._begun[0] + self._take(len(self._buffer) - len(rest) + 1))

    def _enter_call(self, begun: str) -> bool:
        """begun: what was taken off the buffer since text ended."""
        self._begun = [begun]
        self._scanner = CallScanner(self._names, is_bare=self._dialect.call_format == "llama3")
        self._state = self._head
        return True

    def _head(self) -> bool:
        """Up to where the arguments begin; a call whose members stand in another order is taken whole."""
        found = self._scanner.read(self._buffer)
        if found is None:
            self._begun.append(self._take(len(self._buffer)))
            return self._no_call() if self._is_final else False
        verdict, at = found
        self._begun.append(self._take(at))
        if verdict == "text":
            return self._no_call()
        if verdict == "whole":
            return self._whole("".join(self._begun[1:]))
        self._call(ToolCallPiece(self.num_calls, "", self._new_id(), self._scanner.name))
        self._object = ObjectScanner()
        self._state = self._arguments
        return True

    def _whole(self, written: str) -> bool:
        call = _json(written)
        arguments = call.get("arguments", call.get("parameters", {})) if isinstance(call, dict) else None
        if isinstance(arguments, str):
            arguments = _json(arguments)
        if not isinstance(arguments, dict) or self._scanner.name is None:
            return self._no_call()
        text = json.dumps(arguments, ensure_ascii=False)
        self._call(ToolCallPiece(self.num_calls, text, self._new_id(), self._scanner.name))
        self.num_calls += 1
        self._state = self._after_call
        return True

    def _no_call(self) -> bool:
        """It was text, the marker too; more of the same may follow."""
        self._say("".join(self._begun))
        self._state = self._plain if self._dialect.call_format == "llama3" else self._content
        return True

    def _arguments(self) -> bool:
        end = self._object.end(self._buffer)
        text = self._take(len(self._buffer) if end is None else end)
        if text:
            self._call(ToolCallPiece(self.num_calls, text))
        if end is None:
            return False
        self.num_calls += 1
        self._object = ObjectScanner(depth=1)
        self._state = self._rest_of_call
        return True

    def _rest_of_call(self) -> bool:
        """After the arguments, to the end of the object that is the call; whatever else it has means nothing."""
        end = self._object.end(self._buffer)
        self._take(len(self._buffer) if end is None else end)
        if end is None:
            return False
        self._state = self._after_call
        return True

    def _after_call(self) -> bool:
        """Another call, or the end of them."""
        rest = self._buffer.lstrip()
        form = self._dialect.call_format
        end = {"hermes": TOOL_CALL_END, "mistral": "]", "llama3": ""}[form]
        if not self._is_final and (not rest or (rest != end and end.startswith(rest))):
            return False
        if form == "hermes":
            self._buffer = rest.removeprefix(end)
            self._enter_content(skips_space=True)
        elif rest[:1] == {"mistral": ",", "llama3": ";"}[form]:
            self._buffer = rest[1:]
            self._enter_call("")
        elif form == "llama3" and rest.startswith("{"):
            self._buffer = rest
            self._enter_call("")
        else:
            self._buffer = rest.removeprefix(end)
            self._skips_space, self._state = True, self._plain
        if self.num_calls == self._max_calls:
            self.is_done, self._buffer = True, ""
            return False
        return True

    def _enter_content(self, *, skips_space: bool) -> None:
        self._skips_space = skips_space
        if not self._names:
            self._state = self._plain
        else:
            self._state = self._bare if self._dialect.call_format == "llama3" else self._content

    def _skip_space(self) -> None:
        if self._skips_space:
            self._buffer = self._buffer.lstrip()
            self._skips_space = not self._buffer

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken


def read(dialect: Dialect, text: str, *, names: Iterable[str] = (), is_thinking: bool = False) -> Reading:
    """All of a reply at once."""
    parser = ReplyParser(dialect, names=names, is_thinking=is_thinking)
    return Reading.of([*parser.decode(text), *parser.flush()])


def _held(text: str, marker: str) -> int:
    """How many characters at the end may turn out to begin `marker`, with the space before it."""
    partial = next((size for size in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:size])), 0)
    before = text[: len(text) - partial]
    return partial + len(before) - len(before.rstrip())


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
