"""Logits to token ids, one row per request, each row as if it were alone.

A draw uses one uniform number per token, a hash of (seed, position): it depends on neither the batch, nor the step, nor
what ran before, so a preempted or restarted request draws the same tokens again. Inverse transform sampling over the
filtered distribution; filters in vLLM's order: penalties, bias, temperature, then min-p, top-k, top-p on the sorted
probabilities.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch

from sessions.engine.request import Request


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """logits: [S, vocabulary] of any float dtype, row i for `requests[i]` -> S token ids. `logits` may be changed."""
    logits = logits.float()
    _adjust(logits, requests)
    token_ids = logits.argmax(dim=-1)
    drawn = [row for row, request in enumerate(requests) if request.params.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        token_ids[rows] = _draw(logits[rows], [requests[row] for row in drawn])
    result: list[int] = token_ids.tolist()
    return result


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) that draws the token at `position`; 53 bits."""
    digest = blake2b(
        seed.to_bytes(8, "little", signed=True) + position.to_bytes(8, "little"), digest_size=8, person=b"draw/1"
    ).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _adjust(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    """Presence and frequency penalties over the completion so far (OpenAI API reference), then logit_bias. In place."""
    rows: list[int] = []
    columns: list[int] = []
    amounts: list[float] = []
    for row, request in enumerate(requests):
        params = request.params
        for token_id, count in request.output_counts.items():
            rows.append(row)
            columns.append(token_id)
            amounts.append(-params.presence_penalty - params.frequency_penalty * count)
        for token_id, bias in params.logit_bias:
            rows.append(row)
            columns.append(token_id)
            amounts.append(bias)
    if rows:
        index = (torch.tensor(rows, device=logits.device), torch.tensor(columns, device=logits.device))
        logits.index_put_(index, torch.tensor(amounts, device=logits.device), accumulate=True)


def _draw(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """logits: [S, V] float32 -> [S] token ids drawn at each request's temperature."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    temperature = column([request.params.temperature for request in requests])
    draws = column([uniform(request.seed, request.num_tokens) for request in requests])
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    params = [request.params for request in requests]
    order = None
    if any(p.top_k or p.top_p < 1 or p.min_p for p in params):
        vocabulary = probabilities.shape[-1]
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(vocabulary, device=logits.device)[None]
        keep = rank < column([p.top_k or vocabulary for p in params])
        keep &= probabilities >= probabilities[:, :1] * column([p.min_p for p in params])
        before = probabilities.cumsum(dim=-1) - probabilities
        keep &= before < column([p.top_p if p.top_p < 1 else 2.0 for p in params])
        keep[:, 0] = True
        probabilities = probabilities * keep
    cumulative = probabilities.cumsum(dim=-1)
    # Strictly greater: a token of probability zero is never drawn, not even by a draw of exactly zero.
    position = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).clamp_(
        max=probabilities.shape[-1] - 1
    )
    return (position if order is None else order.gather(1, position))[:, 0]
