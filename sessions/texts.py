"""Texts: what a client may ask of the tokenizer and of the rendering, without anything being run. Event loop."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from sessions.errors import ContextLengthExceeded, InvalidRequest
from sessions.prompting import Prompter, scope_of
from sessions.reports import MessagePlace, Rendering
from sessions.tokenizer import Tokenizer
from sessions.types import ChatRequest, Tenant, TokenId

LONG_TEXT: Final = 20_000
"""Texts of more characters, and ids of a quarter as many tokens, are converted off the event loop."""
MAX_TOKENS: Final = 1 << 20
"""Of one text that is encoded, or one list that is decoded."""


class Texts:
    """Parts are the service's own."""

    def __init__(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        self._tokenizer = tokenizer
        self._prompter = prompter
        self.apart = prompter.apart

    async def encode(self, text: str, tenant: Tenant, *, with_prefix: bool, param: str) -> list[TokenId]:
        """As it would be a completion's prompt; with_prefix: after what the model begins every text with.

        Raises InvalidRequest if it could only be written with a control token, or has more than MAX_TOKENS.
        """

        def encode() -> list[TokenId]:
            try:
                ids = self._tokenizer.encode_plain(text, scope=f"{tenant.id}\0", max_model_len=MAX_TOKENS + 1)
            except ContextLengthExceeded:
                raise InvalidRequest(
                    f"Invalid value for '{param}': a text of more than {MAX_TOKENS} tokens; send it in pieces.",
                    param=param,
                    code="invalid_value",
                ) from None
            return ids if with_prefix else ids[len(self._tokenizer.prefix_ids) :]

        return await self.apart(encode) if len(text) > LONG_TEXT else encode()

    async def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens left out. Raises InvalidRequest for ids that are none of the model's."""

        def decode() -> str:
            if not all(0 <= token_id < self._tokenizer.vocab_size for token_id in token_ids):
                raise InvalidRequest(
                    f"Invalid value for 'tokens': an id is not one of the model's {self._tokenizer.vocab_size}.",
                    param="tokens",
                    code="invalid_value",
                )
            return self._tokenizer.decode(token_ids)

        return await self.apart(decode) if 4 * len(token_ids) > LONG_TEXT else decode()

    def piece(self, token_id: int) -> bytes | str:
        """What a token writes; its name, if that is nothing. Any thread."""
        written = self._tokenizer.token_bytes.of(token_id)
        return self._tokenizer.token_bytes.name(token_id) if written is None else written

    async def render(self, request: ChatRequest, *, is_open: bool = True) -> Rendering:
        """The prompt that `ChatService.start` would make of the request. Raises as it does."""
        whole = replace(request, wants_explanation=True)  # only a whole rendering knows where contents stand
        prompted = await self._prompter.prompt(whole, is_open=is_open)
        prompt = prompted.prompt
        offsets = [offset for span in prompt.contents for offset in (span.start, span.end)]
        count = partial(
            self._tokenizer.tokens_before, prompt, offsets, scope=scope_of(request), spliced=prompted.spliced
        )
        counts = await self.apart(count) if len(prompt.text) > LONG_TEXT else count()
        places = tuple(
            MessagePlace(span.message, span.start, span.end, first, end)
            for span, first, end in zip(prompt.contents, counts[::2], counts[1::2], strict=True)
        )
        return Rendering(prompt.text, tuple(map(TokenId, prompted.token_ids)), places, prompted.report)
