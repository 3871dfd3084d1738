"""Groups by `prompt_cache_key`: known when they come back, to their tenant only, and so many at most."""

from sessions.affinity import Affinity


def test_a_group_is_known_when_it_comes_back() -> None:
    affinity = Affinity()
    assert [affinity.returns("ann", key) for key in ("a", "b", "a", "b", None, None)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


def test_a_group_is_its_tenants() -> None:
    affinity = Affinity()
    assert not affinity.returns("ann", "a")
    assert not affinity.returns("bob", "a")
    assert not affinity.returns("an", "na")
    assert affinity.returns("ann", "a")


def test_the_quietest_group_is_forgotten_first() -> None:
    affinity = Affinity(max_groups=2)
    for key in ("a", "b", "a", "c"):
        affinity.returns("ann", key)
    assert affinity.returns("ann", "a")
    assert not affinity.returns("ann", "b")


def test_any_text_is_a_key() -> None:
    affinity = Affinity()
    assert not affinity.returns("ann", "\ud800" * 100_000)
    assert affinity.returns("ann", "\ud800" * 100_000)
