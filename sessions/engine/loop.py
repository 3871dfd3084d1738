"""Engine: the thread that owns scheduler, pool and runner. All others talk to it through one inbox and one outbox.

    event loop ──submit/abort/call──▶ inbox ──▶ [ step: schedule, run, commit ] ──▶ deliver(one batch per step)

`deliver` is called on the engine thread, once per step, with all of the step's outputs; its owner moves them across.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

import structlog

from sessions.engine.request import Request, RequestOutput
from sessions.engine.schedule import Computed, Schedule
from sessions.engine.scheduler import Scheduler
from sessions.errors import EngineFailed
from sessions.types import BlockHash, RequestId

T = TypeVar("T")
log = structlog.get_logger(__name__)

STOPPED = "The engine has stopped."

MAX_CONSECUTIVE_FAILURES = 3
"""Steps that may raise in a row before the engine gives up and `is_alive` turns false."""


class Runner(Protocol):
    """All device work of a step. Raises whatever the device raises; then nothing of the step counts."""

    def execute(self, schedule: Schedule) -> list[Computed]:
        """Copy, write K and V of the scheduled tokens and drafts; what came of each entry, in order."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step, or a call between two, hands over. removed: BlockRemoved events, leaves first."""

    outputs: list[RequestOutput]
    removed: list[BlockHash]


class Engine:
    """`submit`, `abort`, `call` and `stop` may come from any thread; none blocks but `stop`, up to its timeout."""

    def __init__(self, scheduler: Scheduler, runner: Runner, deliver: Callable[[StepResult], None]) -> None:
        self.scheduler = scheduler
        self.num_steps = 0
        self._runner = runner
        self._deliver = deliver
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._inbox_lock = threading.Lock()
        self._is_closed = False
        self._stopping = False
        self._num_failures = 0
        self._thread = threading.Thread(target=self._run, name="anaphora-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queue a request. Its outputs come through `deliver` until one has a finish reason or an error.

        A stopped engine delivers the error at once, on the calling thread.
        """
        if not self._post(lambda: self.scheduler.add(request)):
            self._deliver(self._lost([request], STOPPED))

    def abort(self, request_id: RequestId) -> None:
        """End a request; its blocks are free before the next step. No output follows. Unknown ids are ignored."""
        self._post(lambda: self._abort(request_id))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the engine thread, between steps. RuntimeError in the future if the engine has stopped."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 - handed to the caller
                future.set_exception(error)
            else:
                self._tell_removed()
                future.set_result(result)

        if not self._post(run):
            future.set_exception(RuntimeError(STOPPED))
        return future

    def stop(self, timeout_s: float) -> None:
        """Finish the step under way and end the thread."""
        self._post(self._set_stopping)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def step(self) -> StepResult:
        """The architecture: schedule, run, commit."""
        schedule = self.scheduler.schedule()
        computed = self._runner.execute(schedule)
        outputs = self.scheduler.commit(schedule, computed)
        self.num_steps += 1
        return StepResult(outputs, self.scheduler.pool.take_removed())

    # -- engine thread --

    def _run(self) -> None:
        while not self._stopping and self._num_failures < MAX_CONSECUTIVE_FAILURES:
            self._take_inbox()
            if self.scheduler.has_work and not self._stopping:
                self._deliver(self._guarded_step())
        with self._inbox_lock:
            self._is_closed = True
        while not self._inbox.empty():
            self._inbox.get()()
        waiting = list(self.scheduler.waiting)
        self.scheduler.waiting.clear()
        self._deliver(self._lost(waiting + self.scheduler.fail_running(), STOPPED))

    def _post(self, item: Callable[[], None]) -> bool:
        """Any thread. False if the engine takes nothing any more; what was taken before is still done."""
        with self._inbox_lock:
            if not self._is_closed:
                self._inbox.put(item)
            return not self._is_closed

    def _take_inbox(self) -> None:
        """Do everything that has come in; sleep only when there is nothing to run."""
        try:
            while True:
                self._inbox.get(block=not self.scheduler.has_work and not self._stopping)()
        except Empty:
            return

    def _tell_removed(self) -> None:
        """What was taken from the pool between two steps is told at once: the next step may be long in coming."""
        removed = self.scheduler.pool.take_removed()
        if removed:
            self._deliver(StepResult([], removed))

    def _guarded_step(self) -> StepResult:
        try:
            result = self.step()
        except Exception as error:
            self._num_failures += 1
            log.exception("step_failed", error=type(error).__name__, in_a_row=self._num_failures)
            return self._lost(self.scheduler.fail_running(), "The engine failed while computing this request.")
        self._num_failures = 0
        return result

    def _lost(self, requests: list[Request], message: str) -> StepResult:
        error = EngineFailed(message)
        outputs = [RequestOutput(r.id, (), None, r.num_cached_tokens or 0, error=error) for r in requests]
        return StepResult(outputs, self.scheduler.pool.take_removed())

    def _abort(self, request_id: RequestId) -> None:
        self.scheduler.abort(request_id)

    def _set_stopping(self) -> None:
        self._stopping = True
