"""What a study is: it measures into plain values (JSON), and presents such values as text, tables and pictures.

The two halves meet in `Results` only: whatever is drawn can be drawn again from the file, and a presentation is tested
without a server.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.scenarios import Prompts
from benchmarks.sizes import Sizes
from benchmarks.spread import Spread
from benchmarks.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Any]


class NotMeasured(Exception):
    """A study has nothing to measure here; the message says why, for the report."""


class Progress(Protocol):
    """Of one study."""

    def begin(self, total: int) -> None:
        """So many ticks will come."""

    def tick(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Of `load`: requests per second that a Poisson process makes, seconds a user thinks, a trace and its speed."""

    rate: float = 1.0
    think_time_s: float = 0.0
    trace: Path | None = None
    time_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What a study may use.

    prompts: the same for the same seed, whichever studies run. own: starts a server of ours with more options, for its
    turn; None where the server was given.
    """

    subject: Subject
    peers: tuple[Subject, ...]
    prompts: Prompts
    sizes: Sizes
    seed: int
    progress: Progress
    own: Callable[[Sequence[str]], AbstractAsyncContextManager[Subject]] | None = None
    load: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True, slots=True)
class Table:
    """The first column stands to the left, the others to the right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Picture:
    """name: of its file, without the ending. caption: what it shows. height: in inches, at a width of nine."""

    name: str
    caption: str
    draw: Callable[["Figure"], None]
    height: float = 3.8


Part = str | Table | Picture
"""A string is a paragraph."""


@dataclass(frozen=True, slots=True)
class Study:
    """asks: the question. reads: how to read what is shown. measure: may raise NotMeasured; present: pure."""

    name: str
    title: str
    asks: str
    reads: str
    measure: Callable[[Bench], Awaitable[Results]]
    present: Callable[[Results], Sequence[Part]]


def spread_of(samples: Sequence[float]) -> dict[str, Any]:
    """For `Results`."""
    return Spread.of(samples).as_json()


def shown(stored: dict[str, Any] | None, unit: str = "") -> str:
    """Of `spread_of`, for a table; a dash where nothing was measured."""
    return "-" if stored is None else Spread.read(stored).text(unit)


def share_shown(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
