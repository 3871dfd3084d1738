"""What of the settings reaches the service."""

from proxy.server import service_options
from proxy.settings import Settings


def test_the_order_of_system_parts_reaches_the_service() -> None:
    assert service_options(Settings(stable_first=True)).stable_first
    assert not service_options(Settings()).stable_first
