"""What the server says of its index when it begins to serve."""

import pytest

from proxy.server import _service_options, index_state
from proxy.settings import Settings
from sessions.types import Stats


@pytest.mark.parametrize(
    ("state", "errors", "said"),
    [
        ("down", 0, "connecting"),
        ("down", 1, "down"),
        ("redis", 0, "redis"),
        ("embedded", 3, "embedded"),
        ("off", 0, "off"),
    ],
)
def test_an_index_that_was_not_heard_yet_is_not_down(state: str, errors: int, said: str) -> None:
    assert index_state(Stats(index_state=state, index_errors=errors)) == said


def test_the_order_of_system_parts_reaches_the_service() -> None:
    assert _service_options(Settings(stable_first=True)).stable_first
    assert not _service_options(Settings()).stable_first
