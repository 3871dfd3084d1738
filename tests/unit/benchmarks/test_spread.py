"""Medians, quartiles and percentiles, by numbers that can be counted on fingers."""

import pytest

from benchmarks.spread import Spread, number, percentile


def test_quartiles_lie_between_neighbours() -> None:
    spread = Spread.of([5, 1, 3, 2, 4])
    assert (spread.low, spread.median, spread.high) == (2, 3, 4)
    assert Spread.of([1, 2]).median == 1.5
    assert spread.text("x") == "3x (2 to 4)"
    assert Spread.of([41.5, 41.5]).text() == "41.5"


def test_a_spread_comes_back_from_json_as_it_was() -> None:
    spread = Spread.of([3.0, 1.0, 2.0])
    assert Spread.read(spread.as_json()) == spread
    assert spread.as_json()["n"] == 3


def test_a_percentile_is_a_sample() -> None:
    samples = [float(value) for value in range(100, 0, -1)]
    assert [percentile(samples, percent) for percent in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([7.0], 99) == 7.0


def test_nothing_measured_is_no_figure() -> None:
    for function in (Spread.of, lambda samples: percentile(samples, 50)):
        with pytest.raises(ValueError, match="no samples"):
            function([])


def test_numbers_have_three_digits_and_no_exponent() -> None:
    assert [number(value) for value in (0.1234, 8.0, 12.34, 123.4, 1234567)] == [
        "0.12",
        "8",
        "12.3",
        "123",
        "1,234,567",
    ]
