"""Load or recompute, with numbers that can be checked by hand."""

from sessions.rate import FORGET_S, Rate
from sessions.tiers.cost import Size, num_worth_loading

PIECES = [Size(100, 1000)] * 4
"""At 1,000 bytes/s one takes a second to load, at 100 tokens/s one to compute."""


def test_what_is_faster_is_chosen() -> None:
    assert num_worth_loading(PIECES, 0, bytes_per_s=1001, tokens_per_s=100) == 4
    assert num_worth_loading(PIECES, 0, bytes_per_s=999, tokens_per_s=100) == 0


def test_an_unknown_speed_is_tried() -> None:
    assert num_worth_loading(PIECES, 10**9, None, 100) == 4
    assert num_worth_loading(PIECES, 10**9, 1, None) == 4


def test_a_backlog_counts_against_loading() -> None:
    assert num_worth_loading(PIECES, 3999, bytes_per_s=2000, tokens_per_s=100) == 4
    assert num_worth_loading(PIECES, 4001, bytes_per_s=2000, tokens_per_s=100) == 0


def test_a_dear_piece_is_loaded_only_for_what_it_opens() -> None:
    dear, cheap = Size(10, 1000), Size(100, 100)
    assert num_worth_loading([cheap, dear], 0, 1000, 100) == 1
    assert num_worth_loading([dear, cheap, cheap], 0, 1000, 100) == 3
    assert num_worth_loading([cheap, dear, dear, cheap], 0, 1000, 100) == 1
    assert num_worth_loading([], 0, 1000, 100) == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_follows_what_is_measured_and_forgets() -> None:
    clock = Clock()
    rate = Rate(least=10, clock=clock)
    assert rate.value is None
    rate.observe(9, 100.0)
    assert rate.value is None, "too small a sample"
    rate.observe(1000, 1.0)
    assert rate.value == 1000
    for _ in range(100):
        rate.observe(100, 1.0)
    assert 100 < rate.value < 101
    clock.now = FORGET_S + 1
    assert rate.value is None
    rate.observe(50, 1.0)
    assert rate.value == 50, "nothing of the old samples is left"
