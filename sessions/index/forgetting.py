"""Forgetting: what is to be deleted in Redis as soon as that lets us, by this process or the next. Thread-safe.

A job is a namespace. In `folder` an empty file stands for each, so that a process which ends first leaves it to the one
that comes after: made before `add` returns, deleted when the job is done. To do one twice harms nothing.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from sessions.trie import Namespace

log = structlog.get_logger(__name__)

MAX_JOBS: Final = 4_096
"""Past it the oldest is left to expire: a client may invent salts while Redis is away."""
_AND_SALTS: Final = ".salts"


class Job(NamedTuple):
    """and_salts: the namespace is a tenant's own, and those of its salts are meant too."""

    namespace: Namespace
    and_salts: bool

    @property
    def name(self) -> str:
        return self.namespace + (_AND_SALTS if self.and_salts else "")


class Forgetting:
    """folder: None is nowhere; then a job is lost with the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self.num_done = 0
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                names = sorted(path.name for path in folder.iterdir())[:MAX_JOBS]
                self._jobs += (Job(Namespace(n.removesuffix(_AND_SALTS)), n.endswith(_AND_SALTS)) for n in names)

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, namespace: Namespace, *, and_salts: bool) -> None:
        """Does nothing where it waits already. A name without data: no wait for the disk."""
        self._add(Job(namespace, and_salts))
        while len(self._jobs) > MAX_JOBS and (oldest := self.first()) is not None:
            log.warning("too much is to be forgotten in Redis: the oldest is left to expire")
            self._end(oldest)

    def _add(self, job: Job) -> None:
        with self._lock:
            if job in self._jobs:
                return
            self._jobs.append(job)
        try:
            if self._folder is not None:
                (self._folder / job.name).touch(0o600)
        except OSError as error:
            log.warning("what is to be forgotten in Redis is not noted", error=error.strerror)

    def first(self) -> Job | None:
        with self._lock:
            return self._jobs[0] if self._jobs else None

    def done(self, job: Job, then: Sequence[Namespace] = ()) -> None:
        """then: namespaces that are to be forgotten in its place; Redis bounds them."""
        for namespace in then:
            self._add(Job(namespace, and_salts=False))
        self.num_done += 1
        self._end(job)

    def _end(self, job: Job) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._jobs.remove(job)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / job.name).unlink(missing_ok=True)
