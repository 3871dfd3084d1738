"""The wire's completion into the values of `sessions`, and logprobs into the legacy shape. Pure."""

import codecs
from collections.abc import Iterable
from math import isnan

from proxy.completion_schemas import CompletionBody, LegacyLogprobs
from proxy.refusals import invalid, unsupported
from proxy.translate import cache_options, check_common, sampling_params
from sessions.reports import TokenLogprob
from sessions.types import CompletionRequest, Tenant

DEFAULT_MAX_TOKENS = 16


def completion_request(wire: CompletionBody, *, tenant: Tenant, max_n: int, vocab_size: int) -> CompletionRequest:
    """Raises InvalidRequest naming the parameter. max_n: choices of all prompts together."""
    n = 1 if wire.n is None else wire.n
    max_tokens = DEFAULT_MAX_TOKENS if wire.max_tokens is None else wire.max_tokens
    check_common(wire, max_n)
    if wire.suffix:
        raise unsupported("suffix")
    if wire.best_of not in (None, n):
        raise unsupported("best_of", "only the same as 'n' is")
    if max_tokens == 0 and not wire.echo:
        raise invalid("max_tokens", "0 needs 'echo': there would be nothing to answer")
    prompts = prompts_of(wire.prompt)
    if len(prompts) * n > max_n:
        raise invalid("prompt", f"this server allows at most {max_n} choices, 'n' for each prompt")
    return CompletionRequest(
        prompts=prompts,
        params=sampling_params(wire, vocab_size, max_tokens=max_tokens, num_logprobs=wire.logprobs),
        n=n,
        tenant=tenant,
        cache_salt=wire.cache_salt,
        cache=cache_options(wire),
        echo=bool(wire.echo),
        takes_control_tokens=wire.anaphora is not None and wire.anaphora.control_tokens,
    )


def prompts_of(prompt: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    """A list of integers is one prompt. Raises InvalidRequest for a list of more than one kind."""
    if isinstance(prompt, str):
        return (prompt,)
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise invalid("prompt", "its items must be all texts, all token ids, or all lists of token ids")
    if kinds == {int}:
        return (tuple(item for item in prompt if isinstance(item, int)),)
    return tuple(item if isinstance(item, str) else tuple(item) for item in prompt if not isinstance(item, int))


class LegacyWriter:
    """Logprobs of one choice in the legacy shape, as they come. Offsets go on from call to call."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0

    def write(self, tokens: Iterable[TokenLogprob]) -> LegacyLogprobs:
        written = LegacyLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in tokens:
            follows_nothing = isnan(token.logprob)
            written.tokens.append(_text(token))
            written.token_logprobs.append(None if follows_nothing else token.logprob)
            written.top_logprobs.append(None if follows_nothing else _top(token))
            written.text_offset.append(self._begin(token.bytes or b""))
        return written

    def _begin(self, written: bytes) -> int:
        """Where a token begins: where the character goes on that it continues, or after one that was never whole."""
        if written and not 0x80 <= written[0] < 0xC0:
            self._num_characters += len(self._decoder.decode(b"", True))
        offset = self._num_characters
        self._num_characters += len(self._decoder.decode(written))
        return offset


def _top(token: TokenLogprob) -> dict[str, float]:
    """Of several tokens that are spelt alike, the likeliest."""
    top: dict[str, float] = {}
    for entry in (*token.top, token):
        top.setdefault(_text(entry), entry.logprob)
    return top


def _text(token: TokenLogprob) -> str:
    r"""OpenAI's legacy spelling of bytes that are no text: `bytes:\xf0\x9f`."""
    is_text = token.bytes is None or token.bytes == token.text.encode()
    return token.text if is_text else "bytes:" + token.text
