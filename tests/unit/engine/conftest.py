"""The CPU kernels as this machine compiles them."""

import pytest

from sessions.engine.native.build import BuildFailed, find_compiler
from sessions.engine.native.kernels import Kernels, load_kernels


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Built anew, not found in a cache. Tests are skipped where there is no compiler, not where it fails."""
    try:
        find_compiler()
    except BuildFailed as error:
        pytest.skip(str(error))
    loaded, reason = load_kernels(tmp_path_factory.mktemp("kernels"))
    assert loaded is not None, reason
    return loaded
