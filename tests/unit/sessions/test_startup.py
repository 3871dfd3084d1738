"""What start-up decides before the model speaks: the secret, and a pool that cannot be had."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sessions.errors import ModelRefused
from sessions.startup import ServiceOptions, _tier_options, open_service, server_secret


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


@pytest.mark.parametrize(
    ("device", "size", "expected"),
    [("cpu", "auto", 0), ("cpu", "0", 0), ("cpu", "3MiB", 3 << 20), ("cuda", "0", 0), ("cuda", "auto", 100)],
)
def test_the_tier_in_host_memory(
    device: str, size: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sessions.engine import kv_cache

    monkeypatch.setattr(kv_cache, "free_host_bytes", lambda: 400 if device == "cuda" else 2**32)
    cache = SimpleNamespace(device=torch.device(device))
    tiers = _tier_options(ServiceOptions(tmp_path, host_memory_size=size), cache)  # type: ignore[arg-type]
    assert (tiers.host_bytes, tiers.disk_bytes) == (expected, 0)
    with pytest.raises(ModelRefused, match="in host memory does not fit"):
        _tier_options(ServiceOptions(tmp_path, host_memory_size="5GiB"), cache)  # type: ignore[arg-type]
