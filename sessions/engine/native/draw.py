"""Tokens drawn by the kernels: the same draws as `sampler.pick_by_torch`, but for rounding."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from sessions.engine.memory import lines
from sessions.engine.native.kernels import Kernels
from sessions.engine.native.structures import DrawCall
from sessions.engine.sampler import uniform
from sessions.engine.schedule import Draw

ROW: Final = np.dtype(
    [*((name, np.float64) for name in ("uniform", "temperature", "top_p", "min_p")), ("top_k", np.int64)]
)
"""How a row is drawn; as in draw.cpp."""


class NativePick:
    """A `sampler.Pick`. Owns the memory that draws work in; not for two threads at once."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._scratch: npt.NDArray[np.uint8] = lines(0)

    def __call__(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
        """logits: [S, vocabulary] fp32, row i for `draws[i]` -> S token ids."""
        logits = logits.contiguous()
        count, width = logits.shape
        rows = np.array([_row(draw) for draw in draws], ROW)
        token_ids = np.empty(count, np.int64)
        threads = torch.get_num_threads()
        needed = self._kernels.draw_bytes(width, threads)
        if len(self._scratch) < needed:
            self._scratch = lines(needed)
        self._kernels.draw(
            DrawCall(
                logits=logits.data_ptr(), rows=rows.ctypes.data, token_ids=token_ids.ctypes.data,
                scratch=self._scratch.ctypes.data, count=count, width=width, num_threads=threads,
            )
        )  # fmt: skip
        result: list[int] = token_ids.tolist()
        return result


def _row(draw: Draw) -> tuple[float, float, float, float, int]:
    params = draw.request.params
    if params.temperature == 0:
        return 0.0, 0.0, 1.0, 0.0, 0
    drawn = uniform(draw.request.seed, draw.position)
    return drawn, params.temperature, params.top_p, params.min_p, params.top_k
