"""The pool's pages are there before they are used, those in front first, and hold what they held."""

import ctypes
import itertools
import mmap
import os
import sys
import threading

import pytest
import torch

from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.memory import LARGE_PAGE
from sessions.engine.prefault import MADV_POPULATE_WRITE, Prefault

DEADLINE_S = 30
SMALL_PAGE = 4096
MADV_DONTNEED = 4


def can_populate() -> bool:
    """Linux 5.14 and later."""
    if sys.platform != "linux":
        return False
    page = mmap.mmap(-1, SMALL_PAGE)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    return ctypes.CDLL(None).madvise(address, ctypes.c_size_t(SMALL_PAGE), MADV_POPULATE_WRITE) == 0


pytestmark = pytest.mark.skipif(not can_populate(), reason="this system makes no pages present ahead of use")


def pages_present(part: torch.Tensor) -> list[bool]:
    """Of every large page, whether all of it is (mincore(2))."""
    present = (ctypes.c_ubyte * (part.nbytes // SMALL_PAGE))()
    done = ctypes.CDLL(None).mincore(ctypes.c_void_p(part.data_ptr()), ctypes.c_size_t(part.nbytes), present)
    assert done == 0
    per_page = LARGE_PAGE // SMALL_PAGE
    return [all(present[at : at + per_page]) for at in range(0, len(present) - per_page + 1, per_page)]


def cache_of(num_blocks: int) -> KVCache:
    """Blocks of 64 KiB in K and in V: 32 a page. No page is there: malloc may have given some that others had."""
    cache = KVCache([LayerLayout(4, 4, 256, 256, 0.06)] * 2, num_blocks, 32, torch.float16, torch.device("cpu"))
    for part in (*cache.keys, *cache.values):
        address = ctypes.c_void_p(part.data_ptr())
        assert ctypes.CDLL(None).madvise(address, ctypes.c_size_t(part.nbytes), MADV_DONTNEED) == 0
    return cache


def test_pages_in_front_are_made_ready_and_others_are_not() -> None:
    cache = cache_of(num_blocks=200)
    parts = [*cache.keys, *cache.values]
    assert not any(any(pages_present(part)) for part in parts)
    for block_id, num_pages in [(0, 2), (31, 2), (32, 3), (20, 3), (100, 5), (199, 6)]:
        cache.prefault.reach(block_id)
        assert cache.prefault.wait(DEADLINE_S)
        assert [pages_present(part) for part in parts] == [[index < num_pages for index in range(6)]] * 4


def test_what_pages_hold_stays() -> None:
    cache = cache_of(num_blocks=128)
    for part in cache.keys:
        part[:100] = 1.5
    cache.prefault.reach(127)
    assert cache.prefault.wait(DEADLINE_S)
    for part in cache.keys:
        assert bool((part[:100] == 1.5).all()) and not part[100:].any()


def test_large_parts_begin_with_a_page_whatever_stands_before_them() -> None:
    layers = [LayerLayout(8, heads, 64, 64, 0.1) for heads in (1, 8, 1, 8)]
    cache = KVCache(layers, 501, 16, torch.float16, torch.device("cpu"))
    large = [part for part in (*cache.keys, *cache.values) if part.nbytes >= LARGE_PAGE]
    assert len(large) == 4 and all(part.data_ptr() % LARGE_PAGE == 0 for part in large)
    ends = sorted((part.data_ptr(), part.data_ptr() + part.nbytes) for part in (*cache.keys, *cache.values))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    cache.prefault.reach(0)
    assert cache.prefault.wait(DEADLINE_S)
    assert all(pages_present(part)[0] for part in large)


def test_without_threads_the_pool_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    cache = cache_of(num_blocks=128)
    cache.prefault.reach(0)
    assert cache.prefault.wait(0)


def test_a_process_that_is_nice_already_has_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(os, "getpriority", lambda which, who: 17)
    monkeypatch.setattr(os, "setpriority", lambda which, who, priority: asked.append(priority))
    cache = cache_of(num_blocks=128)
    cache.prefault.reach(0)
    assert cache.prefault.wait(DEADLINE_S) and asked == [19]
    assert pages_present(cache.keys[0])[0]


def test_small_pools_are_left_alone() -> None:
    prefault = Prefault([torch.zeros(8, 100)])
    prefault.reach(7)
    assert prefault.wait(0)


def test_a_system_that_cannot_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessions.engine.prefault.MADV_POPULATE_WRITE", 9999)
    cache = cache_of(num_blocks=128)
    cache.prefault.reach(0)
    assert cache.prefault.wait(DEADLINE_S)
    cache.prefault.reach(127)
    assert cache.prefault.wait(0)
    assert not any(pages_present(cache.keys[0]))
