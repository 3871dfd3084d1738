"""Masks: which tokens may be drawn under constraints. Engine thread; llguidance lets go of the GIL.

Computed after the forward is launched and before its logits are read: a GPU is at work meanwhile. On a CPU that the
forward fills, a thread beside it made decoding slower (`docs/log.md`).
"""

from collections.abc import Sequence
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
