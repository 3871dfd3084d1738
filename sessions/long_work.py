"""LongWork: what takes long and lets other threads run meanwhile goes to threads, at most so many at once. Event loop.

Encoding millions of characters keeps a core busy for seconds. Were each such text given a thread of its own, a few of
them would take the cores from what is generated.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class LongWork:
    """One per service. most: at once; half of the cores without it."""

    def __init__(self, most: int | None = None) -> None:
        self._places = asyncio.Semaphore(most or max(1, (os.cpu_count() or 1) // 2))

    async def __call__(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """`work(*args, **kwargs)`, on a thread, in its turn. Who is cancelled waits no more; what runs keeps its place
        till it is done.
        """
        await self._places.acquire()
        running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
        running.add_done_callback(self._leave)
        return await asyncio.shield(running)

    def _leave(self, done: "asyncio.Future[Any]") -> None:
        self._places.release()
        if not done.cancelled():
            done.exception()  # nobody may be there any more to hear of it
