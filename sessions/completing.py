"""Completing: the prompts of a completion request into token ids and what is said of them again. No tensors.

A text is plain: what looks like a control token stays text, and what the model begins every text with (BOS) is put
before it. Ids are taken as they are, once they are the model's; those of control tokens only where the client says that
it means them, because a tokenizer that it ran over somebody's text may have made them of that text.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

from sessions.errors import ContextLengthExceeded, InvalidRequest
from sessions.generation import Echo
from sessions.long_work import LongWork
from sessions.tokenizer import Tokenizer
from sessions.types import CompletionRequest, TokenId

LONG_TEXT_CHARACTERS: Final = 20_000
"""Texts past this are encoded off the event loop."""


async def encode_prompts(
    request: CompletionRequest, tokenizer: Tokenizer, apart: LongWork, *, scope: str, max_model_len: int
) -> list[tuple[list[TokenId], Echo]]:
    """In order. Raises InvalidRequest and ContextLengthExceeded, both naming `prompt`."""
    encoded = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            encode = partial(encode_text, tokenizer, prompt, scope, max_model_len)
            ids = await apart(encode) if len(prompt) > LONG_TEXT_CHARACTERS else encode()
            echo = Echo(prompt, tuple(ids), len(tokenizer.prefix_ids))
        else:
            ids = checked_ids(prompt, tokenizer, max_model_len, takes_control_tokens=request.takes_control_tokens)
            echo = Echo(tokenizer.decode(ids), tuple(ids))
        if not ids:
            raise InvalidRequest("A prompt must have at least one token.", param="prompt", code="invalid_value")
        encoded.append((ids, echo))
    return encoded


def encode_text(tokenizer: Tokenizer, text: str, scope: str, max_model_len: int) -> list[TokenId]:
    """Any thread."""
    try:
        return tokenizer.encode_plain(text, scope=scope, max_model_len=max_model_len)
    except ContextLengthExceeded:
        raise
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param="prompt", code=error.code) from None


def checked_ids(
    ids: Sequence[int], tokenizer: Tokenizer, max_model_len: int, *, takes_control_tokens: bool
) -> list[TokenId]:
    """Raises InvalidRequest for ids that are none of the model's, and for control tokens that nobody said are meant."""
    if len(ids) >= max_model_len:
        raise ContextLengthExceeded(num_prompt_tokens=len(ids), max_model_len=max_model_len, param="prompt")
    if not all(0 <= token_id < tokenizer.vocab_size for token_id in ids):
        raise _invalid(f"a token id is not one of the model's {tokenizer.vocab_size}")
    prefix = tokenizer.prefix_ids
    own = ids[len(prefix) :] if tuple(ids[: len(prefix)]) == prefix else ids
    if not takes_control_tokens and not tokenizer.control_ids.isdisjoint(own):
        raise _invalid("it has a control token's id; set 'anaphora.control_tokens' to true if that is meant")
    return [TokenId(token_id) for token_id in ids]


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for 'prompt': {reason}.", param="prompt", code="invalid_value")
