"""Every attention that a device can have is plain attention, at any dtype. On CPU the test itself is tested."""

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from sessions.engine.attending import open_attention
from sessions.engine.attention import AttentionKind
from sessions.engine.kv_cache import KVCache, LayerLayout
from tests.unit.engine.steps import Requests

NUM_TOKENS = (41, 18, 33, 62, 34, 150)
NEW = (1, 1, 33, 12, 4, 70)
"""Two streams, a cold chunk, a warm one, a stream with drafts, a chunk longer than a tile."""

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
KINDS: list[AttentionKind] = ["flex", "sdpa"]
DTYPES = [
    (torch.float32, torch.float32, 1e-4),
    (torch.bfloat16, torch.bfloat16, 3e-2),
    (torch.float16, torch.float16, 5e-3),
    (torch.float32, torch.int8, 2e-2),
    (torch.bfloat16, torch.int8, 4e-2),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("heads", [(8, 2, 64, 64), (9, 3, 64, 32)])
@pytest.mark.parametrize(("dtype", "kv_dtype", "limit"), DTYPES)
def test_it_is_plain_attention(
    device: str,
    kind: AttentionKind,
    window: int | None,
    heads: tuple[int, int, int, int],
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout, place = LayerLayout(*heads, 0.125, window), torch.device(device)
    if kind == "flex":
        if kv_dtype != dtype:
            pytest.skip("flex reads no such pool")
        monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", device == "cpu")
    cache = KVCache([layout], 40, 16, kv_dtype, place, tokens_first=True)
    requests = Requests(cache, NUM_TOKENS)
    attention = open_attention(kind, cache, None, 256)
    with torch.inference_mode():
        before, entries = requests.halves(NEW)
        requests.step(attention, before, dtype)
        got = requests.step(attention, entries, dtype)
    wanted = requests.wanted(entries)
    assert (got - wanted).abs().max() < limit * wanted.abs().max()
