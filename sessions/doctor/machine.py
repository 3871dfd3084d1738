"""Device, kernels and memory of this machine, or of the container that is all of it we may use. Imports torch late."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from sessions.doctor.finding import Finding, failure, fine, size, warning
from sessions.errors import ModelRefused
from sessions.startup import ServiceOptions, open_pool

if TYPE_CHECKING:
    from sessions.engine.loaded import LoadedModel

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its own limits (cgroup v2)."""


def device(options: ServiceOptions, cgroup: Path = CGROUP) -> Finding:
    """What computes, and whether as many threads as there are cores to run them."""
    import torch

    if options.device != "cpu" and torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        return fine("device", f"cuda: {name}, {size(memory)}")
    if options.device == "cuda":
        return failure(
            "device", f"torch {torch.__version__} sees no CUDA device", "use --device cpu, or install torch for CUDA."
        )
    threads, cores = options.num_threads or torch.get_num_threads(), num_cores(cgroup)
    figure = f"cpu: {torch.backends.cpu.get_cpu_capability()}, {threads} threads on {cores:g} cores"
    if threads > cores:
        return warning("device", figure, f"set --num-threads {max(1, int(cores))}: threads that wait for a core spin.")
    return fine("device", figure)


def kernels(options: ServiceOptions) -> Finding:
    """The compiled kernels of the CPU path, built if they are not there yet."""
    import torch

    from sessions.engine.native.build import BuildFailed, find_compiler
    from sessions.engine.native.kernels import LANES, load_kernels

    if options.block_size % LANES:
        return warning(
            "kernels",
            f"blocks of {options.block_size} tokens",
            f"choose a --block-size that is a multiple of {LANES}: plain torch computes instead, slower.",
        )
    loaded, reason = load_kernels(options.cache_dir)
    if loaded is None:
        advice = "install a C++ compiler (apt-get install g++), or set CXX: plain torch computes instead, slower."
        return warning("kernels", reason, advice)
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return warning("kernels", "compiled, for a CPU without AVX2", "use a newer CPU: they are written for AVX2.")
    try:
        compiler = Path(find_compiler()).name
    except BuildFailed:  # it was there when they were built
        compiler = "an earlier compiler"
    return fine("kernels", f"compiled by {compiler}")


def memory(options: ServiceOptions, loaded: "LoadedModel", cgroup: Path = CGROUP) -> Finding:
    """Does the KV pool fit beside the weights, which are loaded by now?"""
    from sessions.engine.kv_cache import free_bytes

    free = free_bytes(loaded.device)
    try:
        pool = open_pool(options, loaded)
    except ModelRefused as refusal:
        return failure("memory", str(refusal), "choose a smaller --pool-size.")
    num_bytes, num_tokens = pool.num_blocks * pool.block_bytes, pool.num_blocks * pool.block_size
    figure = f"KV pool of {num_tokens:,} tokens, {size(num_bytes)}; {size(free)} free beside the weights"
    left = _container_memory(cgroup)
    if loaded.device.type == "cpu" and left is not None and num_bytes > left:
        return failure(
            "memory",
            f"a KV pool of {size(num_bytes)}, and the container may use {size(left)} more",
            "choose a smaller --pool-size, in bytes, or raise the container's limit.",
        )
    longest = min(options.max_model_len or loaded.max_model_len, loaded.max_model_len)
    if num_tokens <= longest:
        return warning("memory", figure, f"a request may have {longest:,} tokens: raise --pool-size.")
    return fine("memory", figure)


def num_cores(cgroup: Path = CGROUP) -> float:
    """Physical cores that this process may use: fewer where it is bound to some, or has a quota of time."""
    cores: float = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() else cores


def _container_memory(cgroup: Path) -> int | None:
    """Bytes that the container may still use; None: no limit of its own."""
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    return int(limit) - int(used) if limit.isdigit() and used.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
