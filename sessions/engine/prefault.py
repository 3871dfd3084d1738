"""Prefault: the pool's pages get memory shortly before blocks on them are used. Engine thread, and one that works.

    a layer's K    [ used blocks ....... | ready ..... | not there yet ................ ]
                                         ▲ reached     ▲ its first use makes the kernel find a page, and clear it

The pool is bigger than what is used at first, so its pages come when they are touched. All layers fill up alike:
without this one step in some thousands of tokens touches a new page of 2 MiB in each of them, and stands for the tenths
of a second that a virtual machine takes to find so much memory. That was the worst gap of all its streams.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

import structlog
import torch

from sessions.engine.memory import LARGE_PAGE, rounded_up

log = structlog.get_logger(__name__)

MADV_POPULATE_WRITE: Final = 23
"""Linux 5.14: make pages present and writable, as they are (madvise(2)). Before it an error, and nothing is done."""
NICER_BY: Final = 5
NICEST: Final = 19
REST: Final = 3
"""Times as long as a page took, before the next: steps want the processor too."""


class Prefault:
    """Of tensors [num_blocks, ..], contiguous; those on CPU that are large enough to begin with a page."""

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        self._parts = [part for part in parts if part.device.type == "cpu" and part.nbytes >= 2 * LARGE_PAGE]
        self._done = [0] * len(self._parts)
        self._per_page = max(1, LARGE_PAGE // max((part[0].nbytes for part in self._parts), default=LARGE_PAGE))
        """Blocks on a page of the widest part."""
        self._num_ready = 0 if self._parts and sys.platform == "linux" else sys.maxsize
        self._num_wanted = 0
        self._worker: threading.Thread | None = None

    def reach(self, block_id: int) -> None:
        """A step uses this block: be ready for a whole page of blocks behind its own. Never waits."""
        wanted = (block_id // self._per_page + 2) * self._per_page
        self._num_wanted = max(self._num_wanted, wanted)
        if self._num_wanted > self._num_ready and (self._worker is None or not self._worker.is_alive()):
            worker = threading.Thread(target=self._work, name="anaphora-prefault", daemon=True)
            try:
                worker.start()
            except RuntimeError as error:  # no more threads here
                self._give_up(str(error))
            else:
                self._worker = worker

    def wait(self, timeout_s: float) -> bool:
        """Until what was asked for is ready."""
        if self._worker is not None:
            self._worker.join(timeout_s)
        return self._num_wanted <= self._num_ready

    def _give_up(self, reason: str) -> None:
        """Pages come when they are touched, then, as they do anywhere."""
        self._num_ready = sys.maxsize
        log.info("pool_pages_are_not_made_ready", reason=reason)

    # -- worker --

    def _work(self) -> None:
        me = threading.get_native_id()
        try:  # on Linux of this thread alone
            os.setpriority(os.PRIO_PROCESS, me, min(os.getpriority(os.PRIO_PROCESS, me) + NICER_BY, NICEST))
            self._populate()
        except OSError as error:
            self._give_up(f"{type(error).__name__} {error.errno}")

    def _populate(self) -> None:
        """Raises OSError."""
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        while (wanted := self._num_wanted) > self._num_ready:
            for index, part in enumerate(self._parts):
                whole_pages = rounded_up(wanted * part[0].nbytes, LARGE_PAGE)
                while self._done[index] < min(whole_pages, part.nbytes // LARGE_PAGE * LARGE_PAGE):
                    started_at = time.monotonic()
                    address = ctypes.c_void_p(part.data_ptr() + self._done[index])
                    if madvise(address, ctypes.c_size_t(LARGE_PAGE), MADV_POPULATE_WRITE):
                        raise OSError(ctypes.get_errno(), "madvise")
                    self._done[index] += LARGE_PAGE
                    time.sleep(REST * (time.monotonic() - started_at))
            self._num_ready = wanted
