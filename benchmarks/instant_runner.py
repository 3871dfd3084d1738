"""A model that costs nothing: what is measured with it is everything else."""

from sessions.engine.schedule import Computed, Schedule


class InstantRunner:
    """`loop.Runner` that always says the same word, at once."""

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id

    def execute(self, schedule: Schedule) -> list[Computed]:
        return [Computed((self._token_id,) if entry.samples else ()) for entry in schedule.entries]
