"""Cache folder and disk tier: every state that is not fine, made on a real disk."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import filelock
import pytest

from sessions.doctor.folders import LEAST_FREE_BYTES, cache_folder, disk_tier


def segment(cache_dir: Path, namespace: str = "aa", num_bytes: int = 3 << 20) -> None:
    (cache_dir / "kv" / namespace).mkdir(parents=True, exist_ok=True)
    (cache_dir / "kv" / namespace / "hash").write_bytes(bytes(num_bytes))


def test_an_empty_folder_is_fine_and_left_empty(tmp_path: Path) -> None:
    found = cache_folder(tmp_path / "new")
    assert found.verdict == "fine" and "writable" in found.figure
    assert list((tmp_path / "new").iterdir()) == []
    assert disk_tier(tmp_path, "0").figure == "off"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "below", Path("/proc/nope")):
        found = cache_folder(folder)
        assert found.verdict == "failure" and str(folder) in found.figure and "--cache-dir" in found.advice


def test_a_secret_that_others_can_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    secret.chmod(0o644)
    assert f"chmod 600 {secret}" in cache_folder(tmp_path).advice
    secret.chmod(0o600)
    assert cache_folder(tmp_path).verdict == "fine"


def test_what_a_crash_left_of_a_conversion_and_not_one_that_runs(tmp_path: Path) -> None:
    (tmp_path / "models" / "key-1.partial").mkdir(parents=True)
    with filelock.FileLock(tmp_path / "models" / "key-1.lock"):
        assert cache_folder(tmp_path).verdict == "fine"
    left = cache_folder(tmp_path)
    assert left.verdict == "warning" and "key-1.partial" in left.figure


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, LEAST_FREE_BYTES - 1))
    assert "make room" in cache_folder(tmp_path).advice
    assert disk_tier(tmp_path, "1GiB").verdict == "fine"
    assert "make room" in disk_tier(tmp_path, "3GiB").advice


def test_a_tier_that_was_on_once(tmp_path: Path) -> None:
    segment(tmp_path)
    found = disk_tier(tmp_path, "0")
    assert found.verdict == "warning" and "3 MiB" in found.figure and "can be read as text" in found.advice


def test_a_tier_of_one_model_and_of_two(tmp_path: Path) -> None:
    segment(tmp_path)
    assert disk_tier(tmp_path, "1GiB").figure.startswith("3 MiB of 1.0 GiB used")
    segment(tmp_path, "bb")
    assert "of 2 models" in disk_tier(tmp_path, "1GiB").figure


def test_a_tier_that_another_process_has(tmp_path: Path) -> None:
    segment(tmp_path)
    with filelock.FileLock(tmp_path / "kv" / "lock"):
        assert "belongs to a running process" in disk_tier(tmp_path, "1GiB").figure
    assert disk_tier(tmp_path, "1GiB").verdict == "fine"
    assert os.access(tmp_path / "kv", os.W_OK)
