"""Device, kernels and memory: what a machine lacks, taken from it for real where that can be done."""

import resource
from pathlib import Path

import psutil
import pytest
import torch

from sessions.doctor.machine import device, kernels, memory, num_cores
from sessions.engine.loaded import LoadedModel
from sessions.engine.measure import prepare_model
from sessions.startup import ServiceOptions
from tests.oracle import SERVED, tiny_model


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return prepare_model(tiny_model("llama", SERVED["llama"]))


def options(folder: Path, **more: object) -> ServiceOptions:
    return ServiceOptions(cache_dir=folder, **more)  # type: ignore[arg-type]


def cgroup(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text + "\n")
    return folder


def test_the_device_and_its_threads(tmp_path: Path) -> None:
    found = device(options(tmp_path, device="cpu"))
    assert found.figure.startswith("cpu: ") and "threads on" in found.figure
    many = device(options(tmp_path, device="cpu", num_threads=1000))
    assert many.verdict == "warning" and "--num-threads" in many.advice


def test_a_container_s_quota_counts(tmp_path: Path) -> None:
    quota = cgroup(tmp_path, cpu_max="50000 100000")
    assert num_cores(quota) == 0.5
    assert device(options(tmp_path, device="cpu", num_threads=1), quota).advice.startswith("set --num-threads 1")
    assert num_cores(cgroup(tmp_path, cpu_max="max 100000")) >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    found = device(options(tmp_path, device="cuda"))
    assert found.verdict == "failure" and "no CUDA device" in found.figure and "--device cpu" in found.advice


def test_kernels_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = kernels(options(tmp_path))
    assert found.verdict == "warning" and "no C++ compiler" in found.figure and "apt-get install g++" in found.advice


def test_kernels_and_a_block_size_that_is_not_theirs(tmp_path: Path) -> None:
    assert "multiple of" in kernels(options(tmp_path, block_size=5)).advice


def test_a_pool_that_fits_and_one_that_does_not(tmp_path: Path, loaded: LoadedModel) -> None:
    fits = memory(options(tmp_path, pool_size="100000 tokens"), loaded, tmp_path)
    assert fits.verdict == "fine" and fits.figure.startswith("KV pool of 100,000 tokens")
    huge = memory(options(tmp_path, pool_size="900TiB"), loaded, tmp_path)
    assert huge.verdict == "failure" and "does not fit" in huge.figure and "--pool-size" in huge.advice


def test_a_pool_that_the_system_refuses_is_said_in_words(tmp_path: Path, loaded: LoadedModel) -> None:
    """As under `ulimit -v`: memory is free, and may not be had."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (64 << 20), before[1]))
    try:
        found = memory(options(tmp_path, pool_size="1GiB"), loaded, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert found.verdict == "failure" and found.figure.startswith("a KV pool of 1.0 GiB cannot be had")
    assert found.advice == "choose a smaller --pool-size."


def test_a_pool_for_less_than_the_longest_request(tmp_path: Path, loaded: LoadedModel) -> None:
    small = memory(options(tmp_path, pool_size="64 tokens"), loaded, tmp_path)
    assert small.verdict == "warning" and f"{loaded.max_model_len:,} tokens" in small.advice
    assert memory(options(tmp_path, pool_size="64 tokens", max_model_len=32), loaded, tmp_path).verdict == "fine"


def test_a_container_s_memory_counts(tmp_path: Path, loaded: LoadedModel) -> None:
    limits = cgroup(tmp_path, memory_max=str(200 << 20), memory_current=str(100 << 20))
    found = memory(options(tmp_path, pool_size="101MiB"), loaded, limits)
    assert found.verdict == "failure" and "the container may use 100 MiB more" in found.figure
    unlimited = cgroup(tmp_path, memory_max="max")
    assert memory(options(tmp_path, pool_size="101MiB"), loaded, unlimited).verdict == "fine"
