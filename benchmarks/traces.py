"""Traces of real traffic as files: who asks when, how much, and which blocks prompts have in common.

JSON lines, two formats, told apart by `hash_ids`:

    Mooncake   {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}
               milliseconds; an id stands for 512 tokens and all before them; the last for what is left
    guidellm   {"timestamp": 27.482, "input_length": 6955, "output_length": 52}
               seconds (its `trace_synthetic`); nothing is shared
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HASH_BLOCK: Final = 512
FIELDS: Final = ("timestamp", "input_length", "output_length")


class TraceError(ValueError):
    """A file that is no trace; the message names the line."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """at_s: after the first request. hash_ids: empty where the trace has none."""

    at_s: float
    num_input: int
    num_output: int
    hash_ids: tuple[int, ...] = ()

    def blocks(self) -> list[tuple[int, int]]:
        """(hash id, tokens) of the prompt, in order."""
        sizes = [HASH_BLOCK] * (len(self.hash_ids) - 1) + [self.num_input - HASH_BLOCK * (len(self.hash_ids) - 1)]
        return list(zip(self.hash_ids, sizes, strict=True)) if self.hash_ids else []


def read_trace(path: Path) -> list[TraceRequest]:
    """All requests in order of time. Raises TraceError, OSError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise TraceError(f"{path.name} is not text in UTF-8") from None
    return parse_trace(lines)


def parse_trace(lines: Sequence[str]) -> list[TraceRequest]:
    """Raises TraceError."""
    rows = [_row(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise TraceError("the trace has no requests")
    if len({bool(row.hash_ids) for row in rows}) > 1:
        raise TraceError("some lines have hash_ids and some have none")
    rows.sort(key=lambda row: row.at_s)
    start, unit = rows[0].at_s, 1000 if rows[0].hash_ids else 1
    return [TraceRequest((row.at_s - start) / unit, row.num_input, row.num_output, row.hash_ids) for row in rows]


def shared_share(requests: Sequence[TraceRequest]) -> float | None:
    """The most that any prefix cache can find of all prompt tokens; None for a trace without hash ids."""
    if not requests or not requests[0].hash_ids:
        return None
    seen: set[int] = set()
    found = 0
    for request in requests:
        for identifier, num_tokens in request.blocks():
            if identifier not in seen:
                break
            found += num_tokens
        seen.update(request.hash_ids)
    return found / sum(request.num_input for request in requests)


def _row(number: int, line: str) -> TraceRequest:
    """Its time is still the file's own."""
    try:
        row = json.loads(line)
    except ValueError:
        raise TraceError(f"line {number} is not JSON") from None
    if not isinstance(row, dict):
        raise TraceError(f"line {number} is no JSON object")
    for name in FIELDS:
        if not isinstance(row.get(name), int | float) or isinstance(row[name], bool) or row[name] < 0:
            raise TraceError(f"line {number}: '{name}' must be a number that is not negative")
    if row["input_length"] < 1:
        raise TraceError(f"line {number}: 'input_length' must be at least 1")
    return TraceRequest(
        float(row["timestamp"]), int(row["input_length"]), max(1, int(row["output_length"])), _hash_ids(number, row)
    )


def _hash_ids(number: int, row: dict[str, Any]) -> tuple[int, ...]:
    ids = row.get("hash_ids")
    if ids is None:
        return ()
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise TraceError(f"line {number}: 'hash_ids' must be a list of whole numbers that are not negative")
    expected = -(-int(row["input_length"]) // HASH_BLOCK)
    if len(ids) != expected:
        raise TraceError(f"line {number}: {row['input_length']} tokens are {expected} blocks, not {len(ids)}")
    return tuple(ids)
