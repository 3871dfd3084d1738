"""The tokenizer's checks: which tokenizers pass, and tokenizers that fail each of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from sessions.doctor.finding import Finding
from sessions.doctor.text import TEXTS, tokenizer_findings
from sessions.tokenizer import Tokenizer
from tests.fakes import byte_tokenizer


def findings(tokenizer: Tokenizer) -> dict[str, Finding]:
    return {finding.check: finding for finding in tokenizer_findings(tokenizer)}


def test_the_default_model_s_tokenizer_is_fine(smollm2_folder: Path) -> None:
    assert {finding.verdict for finding in findings(Tokenizer.load(smollm2_folder)).values()} == {"fine"}


def test_a_base_model_without_an_end_is_a_failure(base_folder: Path) -> None:
    ends = findings(Tokenizer.load(base_folder))["tokenizer"]
    assert ends.verdict == "failure" and "generation_config.json" in ends.advice


def test_a_normaliser_is_told_and_shown(phi_folder: Path) -> None:
    """NFC makes one code point of a letter and its mark."""
    changed = findings(Tokenizer.load(phi_folder))["round trip"]
    assert changed.verdict == "warning"
    assert changed.figure.startswith("combining marks come back otherwise") and "\u00e9" in changed.figure


def test_a_vocabulary_of_five_letters_cannot_say_words(unigram_folder: Path) -> None:
    assert findings(Tokenizer.load(unigram_folder))["round trip"].verdict == "failure"


def test_an_unknown_letter_is_not_taken_for_a_control_token(unigram_folder: Path) -> None:
    assert findings(Tokenizer.load(unigram_folder))["control tokens"].verdict == "fine"


class Leaky(Tokenizer):
    """One that reads what users write as control tokens."""

    def encode_text(self, text: str, *, scope: str) -> list[int]:  # type: ignore[override]
        return list(self._backend.encode(text, add_special_tokens=False).ids)


class Forgetful(Tokenizer):
    """One whose first token of a text is said only where it stands alone."""

    def decode(self, ids: Sequence[int]) -> str:
        whole = super().decode(ids)
        return whole if len(ids) < 2 else whole[1:]


@pytest.mark.parametrize(("kind", "check"), [(Leaky, "control tokens"), (Forgetful, "streaming")])
def test_broken_tokenizers_are_failures(kind: type[Tokenizer], check: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.__class__ = kind
    assert findings(tokenizer)[check].verdict == "failure"
    assert findings(byte_tokenizer())[check].verdict == "fine"
    assert len(TEXTS) > 10
