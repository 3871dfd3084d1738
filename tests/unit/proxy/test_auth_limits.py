"""Keys and admission, without a server: which comparison is made, and what the counts are after every way out."""

import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import KeyRing
from proxy.errors import Unauthorized
from proxy.limits import InFlight
from sessions.errors import Overloaded
from sessions.types import Tenant

ALICE, BOB = Tenant("alice"), Tenant("bob")


def test_a_key_stands_for_its_tenant() -> None:
    ring = KeyRing([("alice", "sk-1"), ("bob", "sk-2"), ("alice", "sk-3")])
    assert [ring.tenant_of(f"Bearer {key}").id for key in ("sk-1", "sk-2", "sk-3")] == ["alice", "bob", "alice"]
    assert ring.tenant_of("bearer  sk-2 ").id == "bob"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "sk-1", "Basic sk-1", "Bearer sk-", "Bearer sk-1x"])
def test_anything_else_is_unauthorized(header: str) -> None:
    with pytest.raises(Unauthorized):
        KeyRing([("alice", "sk-1")]).tenant_of(header)


def test_without_keys_everybody_is_the_default_tenant() -> None:
    assert KeyRing([]).tenant_of("Bearer whatever") == KeyRing([]).tenant_of("") == Tenant("default")


@pytest.mark.parametrize("key", ["sk-0", "sk-4", "wrong"])
def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Timing says nothing of where a key stands: all five comparisons are made, on digests of one length."""
    lengths: list[tuple[int, int]] = []
    genuine = hmac.compare_digest

    def counting(first: Any, second: Any) -> bool:
        lengths.append((len(first), len(second)))
        return genuine(first, second)

    monkeypatch.setattr("proxy.auth.hmac.compare_digest", counting)
    ring = KeyRing([(f"tenant-{index}", f"sk-{index}") for index in range(5)])
    if key == "wrong":
        with pytest.raises(Unauthorized):
            ring.tenant_of(f"Bearer {key}")
    else:
        ring.tenant_of(f"Bearer {key}")
    assert lengths == [(32, 32)] * 5


def test_the_total_is_bounded_and_comes_back() -> None:
    in_flight = InFlight(total=2, per_tenant=0)
    in_flight.enter(ALICE)
    in_flight.enter(ALICE)
    with pytest.raises(Overloaded, match="on this server"):
        in_flight.enter(BOB)
    in_flight.leave(ALICE, 1.0)
    in_flight.enter(BOB)
    assert in_flight.num_in_flight == 2


def test_a_tenant_s_bound_leaves_room_for_others() -> None:
    in_flight = InFlight(total=3, per_tenant=1)
    in_flight.enter(ALICE)
    with pytest.raises(Overloaded, match="your requests"):
        in_flight.enter(ALICE)
    in_flight.enter(BOB)
    assert in_flight.num_in_flight == 2


def test_retry_after_follows_the_measured_durations() -> None:
    in_flight = InFlight(total=1, per_tenant=0)

    def estimate() -> float:
        in_flight.enter(ALICE)
        with pytest.raises(Overloaded) as caught:
            in_flight.enter(BOB)
        return caught.value.retry_after_s

    fresh = estimate()
    for _ in range(60):
        in_flight.leave(ALICE, 30.0)
        in_flight.enter(ALICE)
    in_flight.leave(ALICE, 30.0)
    assert estimate() == pytest.approx(30.0, rel=0.05)
    assert fresh == pytest.approx(1.0)


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.booleans())))
def test_counts_are_what_was_entered_less_what_was_left(moves: list[tuple[Tenant, bool]]) -> None:
    in_flight, inside = InFlight(total=4, per_tenant=3), {ALICE.id: 0, BOB.id: 0}
    for tenant, enters in moves:
        if enters:
            full = sum(inside.values()) >= 4 or inside[tenant.id] >= 3
            try:
                in_flight.enter(tenant)
            except Overloaded:
                assert full
            else:
                assert not full
                inside[tenant.id] += 1
        elif inside[tenant.id]:
            in_flight.leave(tenant, 1.0)
            inside[tenant.id] -= 1
        assert in_flight.num_in_flight == sum(inside.values())
