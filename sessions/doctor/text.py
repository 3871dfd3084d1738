"""The tokenizer: text comes back as it was, control tokens cannot be written by text, streaming says the same. Pure."""

from collections.abc import Iterator
from typing import Final

from sessions.detokenizer import Detokenizer
from sessions.doctor.finding import Finding, failure, fine, warning
from sessions.errors import InvalidRequest
from sessions.tokenizer import Tokenizer

TEXTS: Final = {
    "words": "The quick brown fox, 1234567890 times.",
    "white space": "a  b\t\tc\n\n\nd \r\n  e",
    "code": "def f(x):\n    return {'a': [x, *x]}  # <b>&amp;</b>\n",
    "accents": "naïve café, Ærøskøbing, Łódź",
    "combining marks": "e\u0301 n\u0303 a\u030a",
    "CJK": "東京は遠い。北京 서울",
    "right to left": "שלום עליכם مرحبا",
    "emoji": "😀 👩‍👩‍👧 🏳️‍🌈 👍🏽",
    "beyond the BMP": "\U00012000 \U0001f004 \U0001d518\U0001d52b\U0001d526",
    "invisible": "zero\u200bwidth no\u00a0break soft\u00adhyphen",
    "controls": "bell\x07 null\x00 escape\x1b[0m",
}
_SCOPE: Final = "doctor"


def tokenizer_findings(tokenizer: Tokenizer) -> Iterator[Finding]:
    yield _ends(tokenizer)
    yield _round_trip(tokenizer)
    yield _control_tokens(tokenizer)
    yield _streaming(tokenizer)


def _ends(tokenizer: Tokenizer) -> Finding:
    if not tokenizer.eos_token_ids:
        return failure("tokenizer", "no token ends a reply", "name eos_token_id in the model's generation_config.json.")
    return fine("tokenizer", f"{tokenizer.vocab_size:,} tokens, {len(tokenizer.eos_token_ids)} of them end a reply")


def _round_trip(tokenizer: Tokenizer) -> Finding:
    changed = {
        name: said
        for name, text in TEXTS.items()
        if (said := tokenizer.decode(tokenizer.encode_text(text, scope=_SCOPE))) != text
    }
    if not changed:
        return fine("round trip", f"{len(TEXTS)} of {len(TEXTS)} kinds of text come back as they were")
    name = next(iter(changed))
    figure = f"{', '.join(changed)} come back otherwise: {TEXTS[name]!r} as {changed[name]!r}"
    if "words" in changed:
        return failure("round trip", figure, "the model's tokenizer is broken: use another copy of the model.")
    return warning(
        "round trip", figure, "nothing, if the model was trained so; such replies are read back, not spliced."
    )


def _control_tokens(tokenizer: Tokenizer) -> Finding:
    """A client's text that spells a control token must stay text."""
    tokens = tokenizer.template.control_tokens
    unknown = set(tokenizer.encode_text("\ufdd0", scope=_SCOPE))  # what no vocabulary has; some have a token for that
    written, refused = [], []
    for text in tokens.by_text:
        try:
            ids = tokenizer.encode_text(f"a {text} b", scope=_SCOPE)
        except InvalidRequest:
            refused.append(text)
            continue
        if not (tokens.ids - unknown).isdisjoint(ids):
            written.append(text)
    if written:
        return failure(
            "control tokens", f"text can write {', '.join(written)}", "do not serve this model to strangers."
        )
    if refused:
        return warning(
            "control tokens",
            f"{', '.join(refused[:5])} cannot be written as text",
            "nothing: requests that hold them are refused.",
        )
    return fine("control tokens", f"{len(tokens.by_text):,}, none of which text can write")


def _streaming(tokenizer: Tokenizer) -> Finding:
    """Piece by piece, and all at once."""
    for name, text in TEXTS.items():
        ids = tokenizer.encode_text(text, scope=_SCOPE)
        stream = Detokenizer(tokenizer.decode, tokenizer.code_point_endings)
        pieces = [*map(stream.decode, ids), stream.flush()]
        if "".join(pieces) != tokenizer.decode(ids):
            return failure(
                "streaming", f"{name}: the pieces make {''.join(pieces)!r}", "ask for whole replies (stream: false)."
            )
    return fine("streaming", "pieces make the same text, and none ends inside a code point")
