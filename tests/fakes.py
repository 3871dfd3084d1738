"""A fake model, so that real pool, scheduler, engine thread and service can be tested fast.

Its next token is a function of *all* earlier tokens, read through the block table from fake KV, so any wrong, stale or
missing KV shows as a wrong token.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import numpy.typing as npt

from sessions.engine.block_table import BlockTable
from sessions.engine.config import EngineConfig
from sessions.engine.request import TokenScore
from sessions.engine.schedule import Computed, Schedule, Scheduled
from sessions.generation import Generation
from sessions.hashing import RootFields
from sessions.parts import IndexOptions, ServiceParts
from sessions.service import ChatService
from sessions.tiers import TierOptions
from sessions.tokenizer import Tokenizer
from sessions.types import ChatRequest, SharedPrompt

ROOT_FIELDS = RootFields(16, "fake", "fake", "none", "float32", "float32", "fake", "fake", "fake")


def next_token(token_ids: Sequence[int], vocab_size: int) -> int:
    """The token that follows `token_ids`; every one of them matters."""
    data = b"".join(token.to_bytes(4, "little") for token in token_ids)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") % vocab_size


def fake_logprob(token_id: int) -> float:
    return -(token_id + 1) / 1024


class FakeRunner:
    """`loop.Runner` over a list of slots: a slot's KV is (position, token id). Also its own `KVReader`."""

    layout = "fake: position and token id, int64 each"

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_size)
        self.num_computed_tokens = 0
        self.block_bytes = block_size * 16

    def host_rows(self, num_rows: int, row_bytes: int) -> npt.NDArray[np.uint8]:
        return np.zeros((num_rows, row_bytes), np.uint8)

    def read_blocks(self, block_ids: Sequence[int], out: npt.NDArray[np.uint8]) -> None:
        for row, block_id in zip(out, block_ids, strict=True):
            slots = self.slots[block_id * self.block_size : (block_id + 1) * self.block_size]
            row[:] = np.array([slot or (-1, -1) for slot in slots], "<i8").view(np.uint8).ravel()

    def _load(self, block_ids: Sequence[int], payload: npt.NDArray[np.uint8]) -> None:
        for row, block_id in zip(payload, block_ids, strict=True):
            pairs = np.ascontiguousarray(row).view("<i8").reshape(-1, 2).tolist()
            self.slots[block_id * self.block_size : (block_id + 1) * self.block_size] = [(p, t) for p, t in pairs]

    def execute(self, schedule: Schedule) -> list[Computed]:
        size = self.block_size
        copied = [self.slots[s.id * size : (s.id + 1) * size] for s, _ in schedule.copies]
        for (_, destination), content in zip(schedule.copies, copied, strict=True):
            self.slots[destination.id * size : (destination.id + 1) * size] = content
        for load in schedule.loads:
            self._load([block.id for block in load.blocks], load.payload)
        for entry in schedule.entries:
            token_ids = [*entry.request.token_ids[entry.start : entry.start + entry.num_tokens], *entry.drafts]
            for position, token_id in enumerate(token_ids, entry.start):
                self.slots[self._slot(entry.request.block_table, position)] = (position, token_id)
            self.num_computed_tokens += entry.num_rows
        return [self._computed(entry) for entry in schedule.entries]

    def _computed(self, entry: Scheduled) -> Computed:
        token_ids = self._verify(entry) if entry.samples else ()
        request = entry.request
        is_scored = request.params.num_logprobs is not None
        rows = request.rows_to_score(entry.start, entry.start + entry.num_tokens)
        return Computed(
            token_ids,
            tuple(self._score(entry, token_id) for token_id in token_ids) if is_scored else (),
            tuple(self._score(entry, request.token_ids[row + 1]) for row in rows),
        )

    def _score(self, entry: Scheduled, token_id: int) -> TokenScore:
        """A number that says which token it is of; the token itself is the likeliest."""
        own, num_tops = fake_logprob(token_id), entry.request.params.num_logprobs or 0
        return TokenScore(
            token_id, own, tuple(((token_id + step) % self.vocab_size, own - step) for step in range(num_tops))
        )

    def _verify(self, entry: Scheduled) -> tuple[int, ...]:
        """One token after the known ones, and one after every draft that was right."""
        known = entry.start + entry.num_tokens
        constraint = entry.request.constraint
        masks = constraint.masks(entry.drafts) if constraint is not None else [None] * (1 + len(entry.drafts))
        drawn = [self._sample(entry.request.block_table, known, masks[0])]
        while len(drawn) <= len(entry.drafts) and drawn[-1] == entry.drafts[len(drawn) - 1]:
            drawn.append(self._sample(entry.request.block_table, known + len(drawn), masks[len(drawn)]))
        return tuple(drawn)

    def _sample(self, block_table: BlockTable, num_tokens: int, mask: bytes | None) -> int:
        seen = []
        for position in range(num_tokens):
            slot = self.slots[self._slot(block_table, position)]
            assert slot is not None and slot[0] == position, f"position {position} holds {slot}"
            seen.append(slot[1])
        if mask is None:
            return next_token(seen, self.vocab_size)
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
        return int(allowed[next_token(seen, len(allowed))]) if len(allowed) else 0

    def _slot(self, block_table: BlockTable, position: int) -> int:
        return block_table[position // self.block_size].id * self.block_size + position % self.block_size


CHATML_WITH_TOOLS = (
    "{% if tools %}{{'<|im_start|>tools\n'}}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{'<|im_end|>\n'}}"
    "{% endif %}"
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(template: str = CHATML_WITH_TOOLS, markers: Sequence[str] = ()) -> Tokenizer:
    """256 bytes plus ChatML's control tokens. markers: further tokens that a model may say."""
    return Tokenizer.load(byte_tokenizer_folder(template, markers))


def byte_tokenizer_folder(template: str = CHATML_WITH_TOOLS, markers: Sequence[str] = ()) -> Path:
    """The files of `byte_tokenizer`, beside the config of a model that there is not."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken(marker, normalized=False) for marker in markers])
    folder = Path(mkdtemp(prefix="anaphora-fake-"))
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    hf.chat_template = template
    hf.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


async def open_fake_service(
    *,
    index: IndexOptions | None = None,
    max_num_waiting: int = 256,
    tokenizer: Tokenizer | None = None,
    disk: tuple[Path, int] | None = None,
    host_bytes: int = 0,
    budgets: dict[str, int] | None = None,
    shared_prompts: Sequence[SharedPrompt] = (),
    max_stored_bytes: int = 2 << 20,
    root_fields: RootFields = ROOT_FIELDS,
    keeps_reasoning: bool = True,
    **engine: int,
) -> ChatService:
    """A started ChatService over the fake model; `engine` are EngineConfig's fields. disk: folder and most bytes.

    budgets: blocks by tenant.
    """
    config = EngineConfig(**engine)
    tokenizer = tokenizer or byte_tokenizer()
    runner = FakeRunner(config.num_blocks, config.block_size, tokenizer.vocab_size)
    parts = ServiceParts(
        "fake",
        tokenizer,
        config,
        root_fields,
        b"s" * 32,
        max_num_waiting,
        index or IndexOptions(),
        tiers=TierOptions(runner, host_bytes, disk[1] if disk else 0, disk[0] if disk else Path()),
        keeps_reasoning=keeps_reasoning,
        budgets=budgets or {},
        shared_prompts=tuple(shared_prompts),
        max_stored_bytes=max_stored_bytes,
    )
    service = ChatService(parts, runner)
    service.open()
    return service


async def text_of(generation: Generation) -> str:
    """All that it says; then it is closed."""
    text = "".join([delta.text async for delta in generation])
    generation.close()
    return text


async def say(service: ChatService, request: ChatRequest) -> str:
    return await text_of(await service.start(request))
