"""ModelRunner: all device work of a step: copies and loads, forward, sampling. Engine thread only."""

from collections.abc import Callable, Sequence

import torch

from sessions.engine.attention import Receiver
from sessions.engine.batch import Batch, build_batch
from sessions.engine.kv_cache import KVCache
from sessions.engine.loaded import LoadedModel
from sessions.engine.native.kernels import NativeAttention, NativePool
from sessions.engine.sampler import sample
from sessions.engine.schedule import Schedule
from sessions.engine.torch_attention import TorchAttention


class ModelRunner:
    """`execute` is the only thing the engine calls."""

    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._loaded = loaded
        self._cache = cache
        self._attention = pick_attention(loaded, cache)

    @torch.inference_mode()
    def execute(self, schedule: Schedule) -> list[tuple[int, ...]]:
        """See `loop.Runner`. Raises what torch raises, out of memory included."""
        self._cache.copy_blocks(
            [source.id for source, _ in schedule.copies], [destination.id for _, destination in schedule.copies]
        )
        for load in schedule.loads:
            self._cache.write_blocks([block.id for block in load.blocks], load.payload)
        if not schedule.entries:
            return []
        batch = build_batch(schedule.entries, self._loaded.device)
        logits = self._loaded.forward(batch, self._attention(batch))
        token_ids = sample(logits, batch.sampled) if batch.sampled else []
        drawn: dict[int, list[int]] = {}
        for draw, token_id in zip(batch.sampled, token_ids, strict=True):
            drawn.setdefault(draw.entry, []).append(token_id)
        return [verified(schedule.entries[index].drafts, drawn[index]) for index in sorted(drawn)]


def verified(drafts: Sequence[int], drawn: Sequence[int]) -> tuple[int, ...]:
    """The draws that count: one after every draft that was right so far. drawn[i] was drawn as if drafts[:i] were."""
    count = 1
    while count <= len(drafts) and drawn[count - 1] == drafts[count - 1]:
        count += 1
    return tuple(drawn[:count])


def pick_attention(loaded: LoadedModel, cache: KVCache) -> Callable[[Batch], Receiver]:
    """The kernels that read blocks in place where they can; torch's gather everywhere else."""
    kernels = loaded.kernels
    if kernels is not None and kernels.can_attend(cache):
        pool = NativePool(kernels, cache, loaded.max_model_len)
        return lambda batch: NativeAttention(pool, batch)
    assert not loaded.fused, "the lean forward needs the kernels"
    return lambda batch: TorchAttention(batch, cache)
