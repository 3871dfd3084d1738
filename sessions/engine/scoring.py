"""Scores: log-probabilities of tokens under the unmodified distribution, before penalties, bias, temperature and masks.

Every row as if it were alone: which rows stand beside it, and how many alternatives they ask for, changes no digit.
"""

from collections.abc import Sequence

import torch

from sessions.engine.request import TokenScore

MAX_ALTERNATIVES = 20
"""So many are always looked for, and cut to what was asked: what a row gets must not depend on its neighbours' wish."""

ROWS_AT_ONCE = 32
"""Of a prompt: its log-probabilities are as large as its logits, and need not stand beside all of them."""


def log_probabilities(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """logits: [S, V] of any float dtype -> [len(rows), V] float32, a copy."""
    index = torch.tensor(rows, device=logits.device)
    # Not logsumexp: that splits a single long row over threads, and so adds it up in another order than among others.
    return torch.log_softmax(logits[index].float(), dim=-1)


def score(log_probs: torch.Tensor, token_ids: Sequence[int], num_tops: Sequence[int]) -> list[TokenScore]:
    """log_probs: [R, V]. Row i: what `token_ids[i]` has, and the `num_tops[i]` likeliest, the likeliest first."""
    index = torch.tensor(token_ids, device=log_probs.device)[:, None]
    chosen: list[float] = log_probs.gather(1, index)[:, 0].tolist()
    if not any(num_tops):
        return [TokenScore(token_id, value) for token_id, value in zip(token_ids, chosen, strict=True)]
    values, ids = log_probs.topk(min(MAX_ALTERNATIVES, log_probs.shape[-1]), dim=-1)
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return [
        TokenScore(token_id, value, tuple(zip(top_ids[:count], top_values[:count], strict=True)))
        for token_id, value, count, (top_ids, top_values) in zip(token_ids, chosen, num_tops, tops, strict=True)
    ]


def score_prompt(logits: torch.Tensor, token_ids: Sequence[int], num_tops: Sequence[int]) -> list[TokenScore]:
    """logits: [P, V], row i for `token_ids[i]`, which is known."""
    scores: list[TokenScore] = []
    for start in range(0, len(token_ids), ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, len(token_ids)))
        scores += score(log_probabilities(logits, rows), token_ids[start : rows.stop], num_tops[start : rows.stop])
    return scores
