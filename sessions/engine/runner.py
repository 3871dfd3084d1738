"""ModelRunner: all device work of a step: copies and loads, forward, sampling. Engine thread only."""

from collections.abc import Sequence

import torch

from sessions.engine.attending import open_attention
from sessions.engine.batch import Batch, build_batch
from sessions.engine.kv_cache import KVCache
from sessions.engine.loaded import LoadedModel
from sessions.engine.masks import compute_masks
from sessions.engine.native.draw import NativePick
from sessions.engine.request import TokenScore
from sessions.engine.sampler import Pick, pick_by_torch, sample
from sessions.engine.schedule import Computed, Schedule, Scheduled
from sessions.engine.scoring import log_probabilities, score, score_prompt


class ModelRunner:
    """`execute` is the only thing the engine calls."""

    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._loaded = loaded
        self._cache = cache
        self._attention = open_attention(loaded.attention, cache, loaded.kernels, loaded.max_model_len, warm=True)
        cache.prefault.reach(0)
        on_cpu = loaded.device.type == "cpu"
        self._pick: Pick = NativePick(loaded.kernels) if loaded.kernels and on_cpu else pick_by_torch

    @torch.inference_mode()
    def execute(self, schedule: Schedule) -> list[Computed]:
        """See `loop.Runner`. Raises what torch raises, out of memory included."""
        self._cache.copy_blocks(
            [source.id for source, _ in schedule.copies], [destination.id for _, destination in schedule.copies]
        )
        for load in schedule.loads:
            self._cache.write_blocks([block.id for block in load.blocks], load.payload)
        if not schedule.entries:
            return []
        batch = build_batch(schedule.entries, self._loaded.device)
        self._cache.prefault.reach(max(int(table[-1]) for table in batch.block_tables))
        logits = self._loaded.forward(batch, self._attention(batch))
        masks = compute_masks(batch.sampled)
        num_draws = len(batch.sampled)
        prompt_scores = _prompt_scores(schedule.entries, batch, logits[num_draws:])
        asking = [row for row, draw in enumerate(batch.sampled) if draw.request.params.num_logprobs is not None]
        unmodified = log_probabilities(logits, asking) if asking else None
        token_ids = sample(logits[:num_draws], batch.sampled, masks, self._pick) if num_draws else []
        scores: dict[int, TokenScore] = {}
        if unmodified is not None:
            num_tops = [batch.sampled[row].request.params.num_logprobs or 0 for row in asking]
            scores = dict(zip(asking, score(unmodified, [token_ids[row] for row in asking], num_tops), strict=True))
        drawn: dict[int, list[int]] = {}
        for row, draw in enumerate(batch.sampled):
            drawn.setdefault(draw.entry, []).append(row)

        def computed(index: int, entry: Scheduled) -> Computed:
            rows = drawn.get(index)
            if rows is None:
                return Computed(prompt_scores=prompt_scores.get(index, ()))
            kept = verified(entry.drafts, [token_ids[row] for row in rows])
            kept_scores = tuple(scores[row] for row in rows[: len(kept)] if row in scores)
            return Computed(kept, kept_scores, prompt_scores.get(index, ()))

        return [computed(index, entry) for index, entry in enumerate(schedule.entries)]


def _prompt_scores(
    entries: Sequence[Scheduled], batch: Batch, logits: torch.Tensor
) -> dict[int, tuple[TokenScore, ...]]:
    """Entry -> scores of its prompt's tokens. logits: of the batch's scored rows."""
    scores: dict[int, tuple[TokenScore, ...]] = {}
    at = 0
    for index, rows in batch.scored:
        request = entries[index].request
        token_ids = request.token_ids[rows.start + 1 : rows.stop + 1]
        num_tops = [request.params.num_logprobs or 0] * len(rows)
        scores[index] = tuple(score_prompt(logits[at : at + len(rows)], token_ids, num_tops))
        at += len(rows)
    return scores


def verified(drafts: Sequence[int], drawn: Sequence[int]) -> tuple[int, ...]:
    """The draws that count: one after every draft that was right so far. drawn[i] was drawn as if drafts[:i] were."""
    count = 1
    while count <= len(drafts) and drawn[count - 1] == drafts[count - 1]:
        count += 1
    return tuple(drawn[:count])
