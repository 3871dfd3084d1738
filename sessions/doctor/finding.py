"""Finding: what one check of `anaphora doctor` has to say. Pure."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fine", "warning", "failure"]
"""warning: it works, with less than it could. failure: `serve` would not start, or not do its job."""


@dataclass(frozen=True, slots=True)
class Finding:
    """check: what was looked at, in a word or two. figure: what was found. advice: what to do, where not fine."""

    check: str
    verdict: Verdict
    figure: str
    advice: str = ""


def fine(check: str, figure: str) -> Finding:
    return Finding(check, "fine", figure)


def warning(check: str, figure: str, advice: str) -> Finding:
    return Finding(check, "warning", figure, advice)


def failure(check: str, figure: str, advice: str) -> Finding:
    return Finding(check, "failure", figure, advice)


def size(num_bytes: float) -> str:
    """In the unit that leaves a few digits."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"
