"""Load or recompute? Pure."""

from collections.abc import Sequence
from typing import NamedTuple


class Size(NamedTuple):
    """What one piece of a prompt costs: to compute, and to load."""

    num_tokens: int
    num_bytes: int


def num_worth_loading(
    sizes: Sequence[Size], num_bytes_before: int, bytes_per_s: float | None, tokens_per_s: float | None
) -> int:
    """How many leading pieces to load so that the prompt is ready soonest; the rest is computed.

    num_bytes_before: what the disk must read for others first. A speed that is not known (None) cannot speak against
    loading: so it gets known.

        saved(m) = tokens of the first m pieces / tokens_per_s - (num_bytes_before + bytes of these) / bytes_per_s
    """
    if bytes_per_s is None or tokens_per_s is None:
        return len(sizes)
    saved, best_saved, best = -num_bytes_before / bytes_per_s, 0.0, 0
    for count, size in enumerate(sizes, 1):
        saved += size.num_tokens / tokens_per_s - size.num_bytes / bytes_per_s
        if saved > best_saved:
            best_saved, best = saved, count
    return best
