"""A fake model, so that real pool, scheduler, engine thread and service can be tested fast.

Its next token is a function of *all* earlier tokens, read through the block table from fake KV, so any wrong, stale or
missing KV shows as a wrong token.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp

from sessions.engine.block_table import BlockTable
from sessions.engine.config import EngineConfig
from sessions.engine.schedule import Schedule, Scheduled
from sessions.hashing import RootFields
from sessions.service import ChatService, IndexOptions, ServiceParts
from sessions.tokenizer import Tokenizer

ROOT_FIELDS = RootFields(16, "fake", "fake", "none", "float32", "float32", "fake", "fake", "fake")


def next_token(token_ids: Sequence[int], vocab_size: int) -> int:
    """The token that follows `token_ids`; every one of them matters."""
    data = b"".join(token.to_bytes(4, "little") for token in token_ids)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") % vocab_size


class FakeRunner:
    """`loop.Runner` over a list of slots: a slot's KV is (position, token id)."""

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_size)
        self.num_computed_tokens = 0

    def execute(self, schedule: Schedule) -> list[tuple[int, ...]]:
        size = self.block_size
        copied = [self.slots[s.id * size : (s.id + 1) * size] for s, _ in schedule.copies]
        for (_, destination), content in zip(schedule.copies, copied, strict=True):
            self.slots[destination.id * size : (destination.id + 1) * size] = content
        for entry in schedule.entries:
            token_ids = [*entry.request.token_ids[entry.start : entry.start + entry.num_tokens], *entry.drafts]
            for position, token_id in enumerate(token_ids, entry.start):
                self.slots[self._slot(entry.request.block_table, position)] = (position, token_id)
            self.num_computed_tokens += entry.num_rows
        return [self._verify(entry) for entry in schedule.entries if entry.samples]

    def _verify(self, entry: Scheduled) -> tuple[int, ...]:
        """One token after the known ones, and one after every draft that was right."""
        known = entry.start + entry.num_tokens
        drawn = [self._sample(entry.request.block_table, known)]
        while len(drawn) <= len(entry.drafts) and drawn[-1] == entry.drafts[len(drawn) - 1]:
            drawn.append(self._sample(entry.request.block_table, known + len(drawn)))
        return tuple(drawn)

    def _sample(self, block_table: BlockTable, num_tokens: int) -> int:
        seen = []
        for position in range(num_tokens):
            slot = self.slots[self._slot(block_table, position)]
            assert slot is not None and slot[0] == position, f"position {position} holds {slot}"
            seen.append(slot[1])
        return next_token(seen, self.vocab_size)

    def _slot(self, block_table: BlockTable, position: int) -> int:
        return block_table[position // self.block_size].id * self.block_size + position % self.block_size


def byte_tokenizer() -> Tokenizer:
    """256 bytes plus ChatML's control tokens."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    folder = Path(mkdtemp(prefix="anaphora-fake-"))
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    hf.chat_template = (
        "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    hf.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return Tokenizer.load(folder)


async def open_fake_service(
    *, index: IndexOptions | None = None, max_num_waiting: int = 256, tokenizer: Tokenizer | None = None, **engine: int
) -> ChatService:
    """A started ChatService over the fake model; `engine` are EngineConfig's fields."""
    config = EngineConfig(**engine)
    tokenizer = tokenizer or byte_tokenizer()
    parts = ServiceParts("fake", tokenizer, config, ROOT_FIELDS, b"s" * 32, max_num_waiting, index or IndexOptions())
    service = ChatService(parts, FakeRunner(config.num_blocks, config.block_size, tokenizer.vocab_size))
    service.open()
    return service
