"""What start-up decides before the model speaks: the secret, and a pool that cannot be had."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sessions.errors import ModelRefused
from sessions.startup import ServiceOptions, open_service, server_secret


def test_the_operators_secret_is_taken_as_it_is(tmp_path: Path) -> None:
    assert server_secret("mine, and long enough", tmp_path) == b"mine, and long enough"
    assert list(tmp_path.iterdir()) == []


def test_a_drawn_secret_is_private_and_outlives_the_process(tmp_path: Path) -> None:
    cache_dir = tmp_path / "not" / "there"
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: server_secret("", cache_dir), range(32)))
    assert len(secrets) == 1 and len(secrets.pop()) == 64
    assert [path.name for path in cache_dir.iterdir()] == ["secret"]
    assert (cache_dir / "secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.model
async def test_a_pool_larger_than_memory_is_refused() -> None:
    from proxy.settings import Settings

    options = ServiceOptions(cache_dir=Settings().cache_dir, pool_size="4096GiB", index="off")
    with pytest.raises(ModelRefused, match="does not fit"):
        await open_service(options)
