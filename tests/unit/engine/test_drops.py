"""Who stores what after a drop: only who arrived when every drop of it was over."""

import pytest

from sessions.engine import drops as drops_module
from sessions.engine.drops import Drops


def test_what_arrives_before_a_drop_is_over_stores_nothing_of_it() -> None:
    drops = Drops()
    early = drops.settled
    one = drops.begin(["a"])
    during = drops.settled
    two = drops.begin(["b"])
    drops.end(two)
    between = drops.settled
    drops.end(one)
    late = drops.settled
    assert [[drops.bars(at, key) for key in "abc"] for at in (early, during, between, late)] == [
        [True, True, False],
        [True, True, False],
        [True, True, False],
        [False, False, False],
    ]
    assert drops.is_newest(late) and not drops.is_newest(between)


def test_who_arrived_before_what_is_remembered_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops_module, "MAX_KEYS", 2)
    drops = Drops()
    arrived = []
    for key in "abc":
        arrived.append(drops.settled)
        drops.end(drops.begin([key]))
    assert [drops.bars(at, "other") for at in arrived] == [True, False, False]
    assert [drops.bars(at, "c") for at in (*arrived, drops.settled)] == [True, True, True, False]
