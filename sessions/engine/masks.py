"""Masks: which tokens may be drawn under constraints. Computed on a thread of its own while the forward runs.

The engine thread touches no constraint from `begin` until it has the result, so each has one thread at a time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sessions.engine.schedule import Draw


class Masks(NamedTuple):
    """rows: those of a step's draws that are constrained. forbidden: bool [len(rows), num_ids]; ids past it are too."""

    rows: list[int]
    forbidden: npt.NDArray[np.bool_]


def compute_masks(draws: Sequence[Draw]) -> Masks | None:
    """None where no draw is constrained. An entry's draws stand together, each with one more of its drafts."""
    rows: list[int] = []
    masks: list[bytes] = []
    for _, group in groupby(enumerate(draws), key=lambda item: item[1].entry):
        entry = list(group)
        constraint = entry[0][1].request.constraint
        if constraint is not None:
            rows += (row for row, _ in entry)
            masks += constraint.masks(entry[-1][1].drafts)
    if not rows:
        return None
    packed = np.frombuffer(b"".join(masks), np.uint8).reshape(len(rows), -1)
    return Masks(rows, np.unpackbits(packed, axis=1, bitorder="little") == 0)


class MaskWorker:
    """One per runner. llguidance lets go of the GIL, and so does the forward."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "anaphora-masks")

    def begin(self, draws: Sequence[Draw]) -> Callable[[], Masks | None]:
        """What waits for the masks of `draws`. Where none is constrained, nothing crosses to the thread."""
        if all(draw.request.constraint is None for draw in draws):
            return lambda: None
        return self._worker.submit(compute_masks, draws).result
