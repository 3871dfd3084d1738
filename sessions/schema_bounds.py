"""Schema bounds: what a schema would cost, told before llguidance sees it. Pure.

llguidance bounds what a mask costs, and not all that comes before one:

    the shortest value   text that a schema forces is tokenized in one piece, under the interpreter's lock
    patterns that meet   one value's are intersected: each more costs four times as much
    multipleOf           one state for each remainder; divisors that meet multiply

Where allOf, references and siblings bring keywords together, what meets is a bound from above, never from below.
"""

import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from math import exp, inf, isfinite, log
from typing import Any, Final

from sessions.schema_references import References, Schema, SchemaRefused

MAX_SHORTEST: Final = 131_072
"""Characters that every value of a schema, or of a part of it, has at least."""
MAX_PATTERNS: Final = 8
"""Of one value."""
MAX_DIVISOR: Final = 10_000
"""What is left of the divisors of one value without their factors 2 and 5; the squares of all stay below its square."""
MAX_PATTERN: Final = 8192
"""Characters of a pattern, or of a name in patternProperties."""
_MAX_LOOKS: Final = 20
"""At each part of a schema, on average: lengths that lead round in circles become less in many ways."""
_ENOUGH: Final = MAX_SHORTEST + 1
"""Larger lengths and counts are as good as this one, and would overflow where they multiply."""
_PATTERNS: Final = ("pattern", "format")
_BLAMED: Final = ("const", "enum", "pattern", "minLength", "minItems", "required", "$ref", "allOf", "anyOf", "oneOf")


def excess(root: Any) -> str | None:
    """The keyword and what is too much about it; None for a schema that can be compiled in time."""
    try:
        nodes = _Nodes(root)
        _check_patterns(nodes.inner_first)
        _check_shortest(nodes)
    except SchemaRefused as refused:
        return str(refused)
    if max(nodes.met(_num_patterns), default=0) > MAX_PATTERNS:
        return f"pattern: more than {MAX_PATTERNS} patterns and formats of one value"
    enough = log(2 * MAX_DIVISOR)  # what is more is too much by itself, and its square may be no float
    if sum(exp(2 * min(weight, enough)) for weight in nodes.met(_divisor_weight)) > 1.01 * MAX_DIVISOR**2:
        return f"multipleOf: without its factors 2 and 5 it is larger than {MAX_DIVISOR}, or together they are"
    return None


def _check_patterns(nodes: Iterable[Schema]) -> None:
    for node in nodes:
        names = node.get("patternProperties")
        for keyword, patterns in (
            ("pattern", [node.get("pattern")]),
            ("patternProperties", names if isinstance(names, dict) else ()),
        ):
            if any(isinstance(pattern, str) and len(pattern) > MAX_PATTERN for pattern in patterns):
                raise SchemaRefused(f"{keyword}: a pattern is longer than {MAX_PATTERN} characters")


def _check_shortest(nodes: "_Nodes") -> None:
    shortest, is_settled = nodes.shortest()
    for node in nodes.inner_first:
        length = shortest[id(node)]
        if length == inf and is_settled:
            raise SchemaRefused("$ref: it leads round in a circle, so that no value of it ever ends")
        if length == inf:
            raise SchemaRefused("$ref: references into what is around them nest too deep")
        if length > MAX_SHORTEST:
            keyword = next((keyword for keyword in _BLAMED if keyword in node), "type")
            raise SchemaRefused(f"{keyword}: no value is shorter than {MAX_SHORTEST} characters")


class _Nodes:
    """The schemas that a value can meet. inner_first: what one consists of comes before it, but for circles."""

    def __init__(self, root: Any) -> None:
        references = References(root)
        self._targets: dict[int, tuple[Schema, ...]] = {}
        self.inner_first: list[Schema] = []
        seen: set[int] = set()
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            node, is_left = stack.pop()
            if is_left:
                self.inner_first.append(node)
            elif isinstance(node, dict) and id(node) not in seen:
                seen.add(id(node))
                self._targets[id(node)] = references.target(node)
                stack.append((node, True))
                stack += ((part, False) for part in (*self._same_value(node), *_parts(node)))

    def shortest(self) -> tuple[dict[int, float], bool]:
        """Characters of each one's shortest value, inf where none ends; False if some might become less yet.

        One is looked at again only where what it consists of became less, so that without circles each is once.
        """
        told = {id(node): _told_length(node) for node in self.inner_first}  # once: texts are long, passes many
        known = {id(node): inf for node in self.inner_first}
        num_parts: dict[int, int] = {}
        users: defaultdict[int, list[Schema]] = defaultdict(list)
        for node in self.inner_first:
            parts = {id(part) for part in (*self._same_value(node), *_parts(node)) if isinstance(part, dict)}
            num_parts[id(node)] = len(parts)
            for part in parts:
                users[part].append(node)
        num_looks = _MAX_LOOKS * (len(num_parts) + sum(num_parts.values()))
        waiting, is_waiting = deque(self.inner_first), set(known)
        while waiting and num_looks > 0:
            node = waiting.popleft()
            is_waiting.discard(id(node))
            num_looks -= 1 + num_parts[id(node)]
            length = self._shortest(node, told[id(node)], known)
            if length != known[id(node)]:
                known[id(node)] = length
                again = [user for user in users[id(node)] if id(user) not in is_waiting]
                waiting += again
                is_waiting.update(map(id, again))
        return known, not waiting

    def _shortest(self, node: Schema, told: int, known: dict[int, float]) -> float:
        """Characters of its shortest value, so far as they are known."""
        lengths = [_own_shortest(node, told, known)]
        lengths += (_of(part, known) for part in (*_list(node, "allOf"), *self._target(node)))
        for key in ("anyOf", "oneOf"):
            if branches := _list(node, key):
                lengths.append(min(_of(part, known) for part in branches))
        length = max(lengths)
        return length if length == inf else min(length, _ENOUGH)

    def met(self, weigh: Callable[[Schema], float]) -> list[float]:
        """How much weight one value, or one part of such a value, brings together: where it is more than in any of what
        brings it.
        """
        known: dict[int, float] = {}
        met: list[float] = []
        for node in self.inner_first:  # a circle adds nothing that was not there
            apart = [weigh(node), *(known.get(id(part), 0.0) for part in _parts(node))]
            joined = [known.get(id(part), 0.0) for part in (*_list(node, "allOf"), *self._target(node))]
            joined += (
                max((known.get(id(part), 0.0) for part in _list(node, key)), default=0.0) for key in ("anyOf", "oneOf")
            )
            known[id(node)] = max(apart) + sum(joined)
            if known[id(node)] > max(*apart[1:], *joined, 0.0):
                met.append(known[id(node)])
        return met

    def _same_value(self, node: Schema) -> Iterator[Any]:
        yield from self._target(node)
        for key in ("allOf", "anyOf", "oneOf"):
            yield from _list(node, key)

    def _target(self, node: Schema) -> tuple[Schema, ...]:
        """What a reference leads to."""
        return self._targets[id(node)]


def _parts(node: Schema) -> Iterator[Any]:
    """The schemas of a value's members and items."""
    for key in ("properties", "patternProperties"):
        if isinstance(node.get(key), dict):
            yield from node[key].values()
    for key in ("additionalProperties", "items", "additionalItems"):
        yield node.get(key)
    yield from _list(node, "prefixItems")
    yield from _list(node, "items")


def _told_length(node: Schema) -> int:
    """Characters that its constants, or its pattern if it is a string, ask for at the least."""
    if "const" in node:
        return _text_length("const", node["const"])
    if values := _list(node, "enum"):
        return min(_text_length("enum", value) for value in values)
    pattern = node.get("pattern")
    return 2 + max(_count(node, "minLength"), shortest_match(pattern) if isinstance(pattern, str) else 0)


def _text_length(keyword: str, value: Any) -> int:
    try:
        return min(len(json.dumps(value, ensure_ascii=False)), _ENOUGH)
    except (RecursionError, ValueError):  # json reads a little more than it writes: depth, digits
        raise SchemaRefused(f"{keyword}: it nests too deep, or a number of it is too long") from None


def _own_shortest(node: Schema, told: int, known: dict[int, float]) -> float:
    """Without what it refers to or combines."""
    if "const" in node or _list(node, "enum"):
        return told
    kinds = _strings(node.get("type"))
    return min((_shortest_of_type(kind, node, told, known) for kind in kinds), default=1)


def _shortest_of_type(kind: str, node: Schema, told: int, known: dict[int, float]) -> float:
    match kind:
        case "string":
            return told
        case "array":
            least, first = _count(node, "minItems"), [*_list(node, "prefixItems"), *_list(node, "items")]
            begin = sum(_of(part, known) for part in first[:least])
            num_more = least - len(first)
            return 2 + begin + (num_more * _of(node.get("items"), known) if num_more > 0 else 0)
        case "object":
            members = node.get("properties") if isinstance(node.get("properties"), dict) else {}
            others = node.get("additionalProperties")
            names = dict.fromkeys(name for name in _list(node, "required") if isinstance(name, str))
            return 2 + sum(len(name) + _of((members or {}).get(name, others), known) for name in names)
        case _:
            return 1


# Whatever opens also matches to the end: one that failed there would be tried again at each of its own characters.
_LEXEME: Final = re.compile(
    r"(?P<empty>[\^$]|\\[bBAzZ]|\(\?[\w-]+\))|(?P<open>\((?:\?(?:P?<\w+>|<?[=!]|[\w-]*:))?)|(?P<close>\))|(?P<bar>\|)"
    r"|(?P<times>[*+?]|\{(?P<least>\d+)(?:,\d*)?\})|\\[pPxu]\{[^}]*(?:\}|\Z)|\\.|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\\?\Z)|.",
    re.DOTALL,
)


def shortest_match(pattern: str) -> int:
    """About how many characters a regular expression matches at the least. It need not be a right one."""
    outer: list[tuple[int | None, int]] = []
    best: int | None = None  # of the alternatives before
    before = last = 0  # of this alternative: what stands before its last atom, and that
    was_times = False
    for lexeme in _LEXEME.finditer(pattern):
        kind = lexeme.lastgroup
        if lexeme["times"]:
            least = int(lexeme["least"][:9]) if lexeme["least"] else int(lexeme["times"] == "+")
            last = last if was_times and lexeme["least"] is None else min(last * least, _ENOUGH)
            was_times = True
            continue
        was_times = False
        if kind == "open":
            outer.append((best, before + last))
            best, before, last = None, 0, 0
        elif kind in ("close", "bar"):
            best = before + last if best is None else min(best, before + last)
            before = last = 0
            if kind == "close" and outer:
                last, (best, before) = best, outer.pop()
        else:
            before, last = before + last, int(kind != "empty")
    return before + last if best is None else min(best, before + last)


def _num_patterns(node: Schema) -> float:
    return sum(isinstance(node.get(keyword), str) for keyword in _PATTERNS)


def _divisor_weight(node: Schema) -> float:
    """The logarithm of its divisor without factors 2 and 5, which a decimal's last digits show."""
    divisor = node.get("multipleOf")
    if not isinstance(divisor, (int, float)) or isinstance(divisor, bool) or divisor <= 0:
        return 0.0
    if isinstance(divisor, int):
        rest = divisor
    elif isfinite(divisor):
        rest = int("".join(map(str, Decimal(repr(divisor)).as_tuple().digits)))
    else:
        return 0.0
    for factor in (2, 5):
        while rest and rest % factor == 0:
            rest //= factor
    return log(rest) if rest else 0.0


def _of(node: Any, known: dict[int, float]) -> float:
    return known.get(id(node), 1) if isinstance(node, dict) else 1


def _list(node: Schema, key: str) -> list[Any]:
    value = node.get(key)
    return value if isinstance(value, list) else []


def _strings(value: Any) -> Iterable[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _count(node: Schema, key: str) -> int:
    value = node.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < inf:
        return 0
    return int(min(value, _ENOUGH))
