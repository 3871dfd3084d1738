"""A model that costs nothing: what is measured with it is everything else."""

import time

from sessions.engine.schedule import Computed, Schedule


class InstantRunner:
    """`loop.Runner` that always says the same word, at once; its second and later tokens after `pause_s`.

    A model's kernels let other threads run meanwhile. Without a pause all of a reply's steps keep the interpreter from
    whoever waits for its first token.
    """

    def __init__(self, token_id: int, pause_s: float = 0.0) -> None:
        self._token_id = token_id
        self._pause_s = pause_s

    def execute(self, schedule: Schedule) -> list[Computed]:
        if self._pause_s and any(entry.is_stream for entry in schedule.entries):
            time.sleep(self._pause_s)
        return [Computed((self._token_id,) if entry.samples else ()) for entry in schedule.entries]
