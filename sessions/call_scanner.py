"""CallScanner: is the JSON object that begins here a call? Told as soon as it is certain. Pure; reads all once.

{"type": "function", "name": "f", "parameters": {"a": 1}}
└ a call, or text? ─────────────────────────────┘└ its arguments

JSON has no order of members, and models do write arguments before the name. So an object that begins with those is
taken whole before it is told; all else that may come before the arguments is short, or no call has it.
"""

from collections.abc import Callable, Collection
from typing import Final, Literal

Verdict = Literal["text", "arguments", "whole"]

_ARGUMENTS: Final = ("arguments", "parameters")
_MEMBERS: Final = ("name", *_ARGUMENTS, "id", "type")
_TYPES: Final = ("function",)
_MAX_ID: Final = 64
"""Characters of an id, its quotes included."""
_SPACE: Final = " \t\r\n"


class CallScanner:
    """One per object.

    names: that it may call. is_bare: nothing but the object says that it is a call, so its members must all be a
    call's until its arguments begin, each of them once: `type` a function's, `id` short. name: once it is known.
    """

    def __init__(self, names: Collection[str], *, is_bare: bool) -> None:
        self._names = names
        self._is_bare = is_bare
        self._state: Callable[[str], Verdict | None] = self._before_object
        self._string = ""
        self._key = ""
        self._keys: set[str] = set()
        self._id_length = 0
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.name: str | None = None

    def read(self, text: str) -> tuple[Verdict, int] | None:
        """What it is, and where in `text` that was seen: at the first character that no call has, at the bracket that
        opens the arguments, or after the object, whose members stand in an order of their own. None: not yet certain.
        """
        for at, character in enumerate(text):
            verdict = self._state(character)
            if verdict is not None:
                return verdict, at + (verdict == "whole")
        return None

    # -- states: each takes a character --

    def _before_object(self, character: str) -> Verdict | None:
        if character == "{":
            self._state = self._before_key
        return None if character == "{" or character.isspace() else "text"

    def _before_key(self, character: str) -> Verdict | None:
        if character == '"':
            self._string, self._state = "", self._in_key
        return None if character == '"' or character in _SPACE else "text"

    def _in_key(self, character: str) -> Verdict | None:
        if character == '"':
            self._key, self._state = self._string, self._after_key
            is_new = self._key not in self._keys
            self._keys.add(self._key)
            return None if (self._key in _MEMBERS and is_new) or not self._is_bare else "text"
        self._string += character
        return "text" if self._is_bare and not _begins_one(self._string, _MEMBERS) else None

    def _after_key(self, character: str) -> Verdict | None:
        if character == ":":
            is_known = self._key == "name" or (self._key == "type" and self._is_bare)
            self._state = self._known_word if is_known else self._value
        return None if character == ":" or character in _SPACE else "text"

    def _known_word(self, character: str) -> Verdict | None:
        if character == '"':
            self._string, self._state = "", self._in_known_word
        return None if character == '"' or character in _SPACE else "text"

    def _in_known_word(self, character: str) -> Verdict | None:
        """A name, or a type."""
        words = self._names if self._key == "name" else _TYPES
        if character == '"':
            self.name = self._string if self._key == "name" else self.name
            self._state = self._after_value
            return None if self._string in words else "text"
        self._string += character
        return None if _begins_one(self._string, words) else "text"

    def _value(self, character: str) -> Verdict | None:
        is_arguments = self._key in _ARGUMENTS
        if character in _SPACE:
            return None
        if is_arguments and character == "{" and self.name is not None:
            return "arguments"
        if is_arguments and character not in '{"':
            return "text"
        self._state = self._in_value
        return self._in_value(character)

    def _in_value(self, character: str) -> Verdict | None:
        """Any; a number or a word is over at what follows it."""
        if self._key == "id" and self._is_bare:
            self._id_length += 1
            if self._id_length > _MAX_ID or character in "{[":
                return "text"
        if self._is_escaped:
            self._is_escaped = False
        elif self._is_in_string:
            self._is_escaped = character == "\\"
            self._is_in_string = character != '"'
        elif not self._depth and (character == "," or character == "}" or character in _SPACE):
            self._state = self._after_value
            return self._after_value(character)
        else:
            self._is_in_string = character == '"'
            self._depth += (character in "{[") - (character in "}]")
        return None

    def _after_value(self, character: str) -> Verdict | None:
        if character == ",":
            self._state = self._before_key
        elif character == "}":
            return "whole"
        return None if character == "," or character in _SPACE else "text"


class ObjectScanner:
    """Finds the end of a JSON object by its braces, across pieces. Constant work per character."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._is_in_string = False
        self._is_escaped = False

    def end(self, text: str) -> int | None:
        """Where in `text` the object is over; None if it goes on."""
        for at, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = character == "\\"
                self._is_in_string = character != '"'
            elif character == '"':
                self._is_in_string = True
            elif character == "{":
                self._depth += 1
            elif character == "}":
                self._depth -= 1
                if not self._depth:
                    return at + 1
        return None


def _begins_one(text: str, of: Collection[str]) -> bool:
    return any(whole.startswith(text) for whole in of)
