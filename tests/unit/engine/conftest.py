"""The CPU kernels as this machine compiles them."""

import pytest

from sessions.engine.native.kernels import Kernels, load_kernels


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Built anew, not found in a cache. Tests are skipped where there is no compiler."""
    loaded, reason = load_kernels(tmp_path_factory.mktemp("kernels"))
    if loaded is None:
        pytest.skip(reason)
    return loaded
