"""Logits to token ids, one row per request, each row as if it were alone.

A draw uses one uniform number per token, a hash of (seed, position): it depends on neither the batch, nor the step, nor
what ran before, so a preempted or restarted request draws the same tokens again. Inverse transform sampling over the
filtered distribution; filters in vLLM's order: penalties (repetition first), bias, masks of constraints, temperature,
then min-p, top-k, top-p on the sorted probabilities.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch

from sessions.engine.masks import Masks
from sessions.engine.schedule import Draw
from sessions.types import SamplingParams

Pick = Callable[[torch.Tensor, Sequence[Draw]], list[int]]
"""Of logits [S, vocabulary] fp32 with penalties, bias and masks in them, row i for `draws[i]`: S token ids."""


def sample(
    logits: torch.Tensor, draws: Sequence[Draw], masks: Masks | None = None, pick: Pick | None = None
) -> list[int]:
    """logits: [S, vocabulary] of any float dtype, row i for `draws[i]` -> S token ids. `logits` may be changed.

    pick: `pick_by_torch` if not given.
    """
    logits = logits.float()
    _discourage_repetition(logits, draws)
    _adjust(logits, draws)
    if masks is not None:
        _forbid(logits, masks)
    return (pick or pick_by_torch)(logits, draws)


def pick_by_torch(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """A `Pick` for any device."""
    token_ids = logits.argmax(dim=-1)
    drawn = [row for row, draw in enumerate(draws) if draw.request.params.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        token_ids[rows] = _draw(logits[rows], [draws[row] for row in drawn])
    result: list[int] = token_ids.tolist()
    return result


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) that draws the token at `position`; 53 bits."""
    digest = blake2b(
        seed.to_bytes(8, "little", signed=True) + position.to_bytes(8, "little"), digest_size=8, person=b"draw/1"
    ).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _discourage_repetition(logits: torch.Tensor, draws: Sequence[Draw]) -> None:
    """https://arxiv.org/abs/1909.05858 as transformers and vLLM have it: over prompt and output. In place."""
    for row, draw in enumerate(draws):
        penalty = draw.request.params.repetition_penalty
        if penalty == 1:
            continue
        seen_ids = [*{**draw.request.seen_ids, **dict.fromkeys(draw.drafts)}]
        seen = torch.tensor(seen_ids, dtype=torch.int64, device=logits.device)
        values = logits[row, seen]
        logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)


def _adjust(logits: torch.Tensor, draws: Sequence[Draw]) -> None:
    """Presence and frequency penalties over the completion so far (OpenAI API reference), then logit_bias. In place."""
    rows: list[int] = []
    columns: list[int] = []
    amounts: list[float] = []
    for row, draw in enumerate(draws):
        params = draw.request.params
        for token_id, count in _output_counts(draw).items():
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


def _output_counts(draw: Draw) -> dict[int, int]:
    counts = draw.request.output_counts
    if not draw.drafts or not draw.request.has_penalty:
        return counts
    return dict(Counter(counts) + Counter(draw.drafts))


def _forbid(logits: torch.Tensor, masks: Masks) -> None:
    """-inf where a mask says no: after penalties and bias, which so cannot make a token legal. In place."""
    forbidden = torch.from_numpy(masks.forbidden).to(logits.device)
    width = min(forbidden.shape[1], logits.shape[1])
    for row, mask in zip(masks.rows, forbidden, strict=True):
        logits[row, :width].masked_fill_(mask[:width], -torch.inf)
        logits[row, width:] = -torch.inf


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """logits: [S, V] float32 -> [S] token ids drawn at each request's temperature.

    Filtered rows are drawn from their sorted probabilities, the others as they stand: how a row is drawn must not
    depend on its neighbours.
    """
    params = [draw.request.params for draw in draws]
    temperature = _column([p.temperature for p in params], logits)
    uniforms = _column([uniform(draw.request.seed, draw.position) for draw in draws], logits)
    # The largest logit becomes 0 first, so that the smallest temperature ends in -inf elsewhere and not in inf there.
    centred = logits.double() - logits.amax(dim=-1, keepdim=True)
    probabilities = torch.softmax(centred / temperature, dim=-1)
    token_ids = torch.empty(len(draws), dtype=torch.int64, device=logits.device)
    for filtered in (False, True):
        rows = [row for row, p in enumerate(params) if bool(p.top_k or p.top_p < 1 or p.min_p) is filtered]
        if not rows:
            continue
        index = torch.tensor(rows, device=logits.device)
        chosen, order = probabilities[index], None
        if filtered:
            chosen, order = _filter(chosen, [params[row] for row in rows])
        position = _invert(chosen, uniforms[index])
        token_ids[index] = (position if order is None else order.gather(1, position))[:, 0]
    return token_ids


def _filter(probabilities: torch.Tensor, params: Sequence[SamplingParams]) -> tuple[torch.Tensor, torch.Tensor]:
    """[S, V] -> the same sorted, largest first, zero where a filter cuts; and the token id of each place."""
    vocabulary = probabilities.shape[-1]
    probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocabulary, device=probabilities.device)[None]
    keep = rank < _column([p.top_k or vocabulary for p in params], probabilities)
    keep &= probabilities >= probabilities[:, :1] * _column([p.min_p for p in params], probabilities)
    before = probabilities.cumsum(dim=-1) - probabilities
    keep &= before < _column([p.top_p if p.top_p < 1 else 2.0 for p in params], probabilities)
    keep[:, 0] = True
    return probabilities * keep, order


def _invert(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse transform sampling: [S, V] and [S, 1] in [0, 1) -> [S, 1] places."""
    cumulative = probabilities.cumsum(dim=-1)
    # Strictly greater: a token of probability zero is never drawn, not even by a draw of exactly zero.
    place = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return place.clamp_(max=probabilities.shape[-1] - 1)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
