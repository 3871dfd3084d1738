"""Interned ids: the same numbers, and the same objects whoever asks."""

from sessions.interned import interned


def test_equal_ids_are_one_object_whoever_made_them() -> None:
    made = [int("70001"), int("5"), int("70001")]
    again = list(interned(int(text) for text in ("70001", "5")))
    kept = list(interned(made))
    assert kept == made
    assert kept[0] is kept[2] is again[0]
    assert made[0] is not made[2]
