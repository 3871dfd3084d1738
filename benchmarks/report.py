"""What every benchmark prints: where and beside what it ran, then medians with ratios to a reference of the same run.

A ratio says how many times *better* than the reference a subject is: more per second, or less time. 2.00x is twice the
rate or half the time. `±` is half the range of the samples as a share of their median: how far to believe a figure.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psutil

Kind = Literal["rate", "time", "plain"]
SETTLE_S = 1.0
"""How long to look at the machine before measuring, to see what else it is doing."""

QUIET_PERCENT = 10.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. kind: for a rate more is better, for a time less; a plain one is shown and not compared."""

    name: str
    unit: str
    kind: Kind = "time"


class Comparison:
    """Samples by figure and subject; the first subject is the reference. Figures print in order of arrival."""

    def __init__(self, subjects: Sequence[str]) -> None:
        self._subjects = tuple(subjects)
        self.samples: dict[Figure, dict[str, list[float]]] = {}
        self._notes: dict[Figure, str] = {}

    def add(self, figure: Figure, subject: str, samples: Sequence[float], note: str = "") -> None:
        """More samples of a figure; `note` stands at the end of its row."""
        self.samples.setdefault(figure, {}).setdefault(subject, []).extend(samples)
        if note:
            self._notes[figure] = note

    def print(self) -> None:
        reference, *others = self._subjects
        headers = ["", "unit", reference]
        for subject in others:
            headers += [subject, "ratio"]
        rows = [self._row(figure) for figure in self.samples]
        if any(self._notes):
            headers.append("")
        print_table([*headers, "n"], rows)
        if others:
            print(f"ratio: times better than {reference}")

    def as_json(self) -> dict[str, dict[str, list[float]]]:
        """All samples, by "name [unit]" and subject."""
        return {f"{figure.name} [{figure.unit}]": of for figure, of in self.samples.items()}

    def _row(self, figure: Figure) -> list[str]:
        of = self.samples[figure]
        reference, *others = self._subjects
        row = [figure.name, figure.unit, show(of.get(reference, []))]
        for subject in others:
            row += [show(of.get(subject, [])), self._ratio(figure, of.get(reference), of.get(subject))]
        if any(self._notes):
            row.append(self._notes.get(figure, ""))
        return [*row, "/".join(sorted({str(len(samples)) for samples in of.values()}))]

    @staticmethod
    def _ratio(figure: Figure, reference: list[float] | None, samples: list[float] | None) -> str:
        if figure.kind == "plain" or not reference or not samples:
            return ""
        worse, better = median(reference), median(samples)
        if figure.kind == "time":
            worse, better = better, worse
        return f"{better / worse:.2f}x" if worse else ""


def show(samples: Sequence[float]) -> str:
    """`median ±spread`, three significant digits; `-` where nothing was measured."""
    if not samples:
        return "-"
    middle = median(samples)
    shown = number(middle)
    if len(samples) > 1 and middle:
        shown += f" ±{(max(samples) - min(samples)) / 2 / abs(middle):.0%}"
    return shown


def number(value: float) -> str:
    """Three significant digits, never in exponents."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, ["-" * width for width in widths], *rows):
        first, *others = (
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call took."""
    started_at = time.monotonic()
    function()
    return time.monotonic() - started_at


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds by name. One unmeasured round, then rounds in turn, so that a disturbance does not hit one name alone."""
    for function in functions.values():
        function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            samples[name].append(timed(function))
    return samples


def milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1000 * value for value in seconds]


@contextmanager
def measuring(title: str) -> Iterator[None]:
    """A heading before, and after it what else ran: load average, and cores that processes other than ours used.

    Ours are this process and the children that have ended; a server given by URL counts among the others.
    """
    print(f"\n== {title}")
    print(f"   {cpu_name()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}")
    busy = psutil.cpu_percent(SETTLE_S)
    print(f"   before: load average {_load()}, processors {busy:.0f}% busy", flush=True)
    if busy > QUIET_PERCENT:
        print("   The machine is not quiet: no figure below is worth keeping.", flush=True)
    started_at, others_at = time.monotonic(), _others_cpu_s()
    yield
    wall_s = time.monotonic() - started_at
    cores = max(0.0, _others_cpu_s() - others_at) / wall_s
    print(f"   after {wall_s:.0f} s: load average {_load()}, other processes used {cores:.2f} cores\n", flush=True)


def cpu_name() -> str:
    """The processor's model where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _others_cpu_s() -> float:
    """Processor seconds that all processes but ours and our ended children have used since the machine started."""
    every, ours = psutil.cpu_times(), os.times()
    busy = every.user + every.system + getattr(every, "nice", 0.0)
    return float(busy) - (ours.user + ours.system + ours.children_user + ours.children_system)
