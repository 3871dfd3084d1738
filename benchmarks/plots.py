"""How pictures look: one palette, axes from zero, whiskers over quartiles. Draws plain values; measures nothing.

The colours are Okabe and Ito's, which people with any kind of colour blindness tell apart; what is cached and what is
computed also differ in hatching. No pyplot: nothing global, no display.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.spread import Spread

GREEN: Final = "#009E73"
RED: Final = "#D55E00"
BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
PURPLE: Final = "#CC79A7"
INK: Final = "#222222"
GREY: Final = "#8A8A8A"
SERIES: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
CACHED: Final = GREEN
COMPUTED: Final = RED
HATCH: Final = "///"

WIDTH: Final = 9.0
DPI: Final = 100
LEGEND_ROOM: Final = 24
"""Points between a title and its axes."""


def save(draw: Callable[[Figure], None], path: Path, height: float) -> None:
    """Draw a picture into a PNG file. Every linear axis of values begins at zero."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    if any(axes.get_legend() is not None for axes in figure.axes):
        for axes in figure.axes:  # titles of one row at one height, with or without a legend below
            _title(axes, axes.get_title(loc="left"), LEGEND_ROOM)
    for axes in figure.axes:
        if axes.get_yscale() == "linear" and not axes.yaxis_inverted():
            axes.set_ylim(bottom=0)
    figure.savefig(path)


def tidy(axes: Axes, title: str, x: str, y: str) -> Axes:
    """Titles and a light grid. Before anything is drawn."""
    _title(axes, title)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(THOUSANDS)
    return axes


THOUSANDS: Final = FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 10 or value == 0 else f"{value:g}")


def bars(
    axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[Spread | None]], colours: Sequence[str]
) -> None:
    """Grouped bars: medians, with whiskers over the quartiles; the value on top. None leaves a place empty."""
    width = 0.8 / len(series)
    top = max((spread.high for row in series.values() for spread in row if spread is not None), default=1.0)
    for index, (name, row) in enumerate(series.items()):
        places = [group - 0.4 + width * (index + 0.5) for group in range(len(groups))]
        known = [(place, spread) for place, spread in zip(places, row, strict=True) if spread is not None]
        axes.bar(
            [place for place, _ in known],
            [spread.median for _, spread in known],
            width * 0.94,
            label=name,
            color=colours[index],
            hatch=HATCH if colours[index] == COMPUTED else None,
            edgecolor="white",
            linewidth=0,
        )
        for place, spread in known:
            axes.vlines(place, spread.low, spread.high, color=INK, linewidth=1.2)
            axes.text(
                place,
                spread.high + top * 0.015,
                _label(spread.median),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=INK,
            )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, top * 1.12)
    if len(series) > 1:
        legend(axes)


def line(axes: Axes, x: Sequence[float], row: Sequence[Spread], name: str, colour: str, marker: str = "o") -> None:
    """Medians, and a band between the quartiles."""
    axes.plot(
        x, [spread.median for spread in row], marker=marker, markersize=5, color=colour, label=name, linewidth=1.8
    )
    axes.fill_between(
        x, [spread.low for spread in row], [spread.high for spread in row], color=colour, alpha=0.18, lw=0
    )


def shares(axes: Axes, names: Sequence[str], cached: Sequence[float], computed: Sequence[float]) -> None:
    """Lying bars of prompt tokens, the first name on top: cached green, computed red and hatched."""
    rows = range(len(names))
    axes.barh(rows, cached, 0.62, color=CACHED, label="cached")
    axes.barh(
        rows, computed, 0.62, left=cached, color=COMPUTED, hatch=HATCH, edgecolor="white", linewidth=0, label="computed"
    )
    longest = max(a + b for a, b in zip(cached, computed, strict=True))
    for row, (have, lack) in enumerate(zip(cached, computed, strict=True)):
        total = have + lack
        axes.text(total + longest * 0.01, row, percent(have, total), va="center", fontsize=8.5)
    axes.set_yticks(rows, names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.1)
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.grid(axis="y", visible=False)


def legend(axes: Axes, columns: int = 4) -> None:
    """Between the title and the plot, where it covers nothing; `save` makes the room."""
    axes.legend(
        fontsize=8.5,
        frameon=False,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.1,
        borderpad=0.2,
        handlelength=1.6,
        columnspacing=1.4,
    )


def percent(part: float, whole: float) -> str:
    """Rounded, but 100% only for all of it and 0% only for nothing."""
    if not whole:
        return ""
    rounded = round(100 * part / whole)
    return f"{min(rounded, 99) if part < whole else rounded}%" if rounded or not part else "<1%"


def _title(axes: Axes, text: str, pad: float | None = None) -> None:
    axes.set_title(text, fontsize=11, color=INK, loc="left", pad=pad)


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
