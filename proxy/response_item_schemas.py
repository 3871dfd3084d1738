"""The items of /v1/responses and /v1/conversations: in answers, in lists, in the store.

Input items come in many spellings, so they are read one by one (`response_items.py`); these are what they become.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from proxy.message_schemas import PromptCacheBreakpoint

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Struct, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """Text that the model is shown.

    text: as it is. prompt_cache_breakpoint: a reusable prefix ends after it.
    """

    text: str
    prompt_cache_breakpoint: PromptCacheBreakpoint | UnsetType | None = UNSET


class TopLogprob(Struct, frozen=True, kw_only=True):
    """A token that might have stood there.

    token: its text. bytes: of its text in UTF-8. logprob: natural logarithm of its probability.
    """

    token: str
    bytes: list[int]
    logprob: float


class Logprob(Struct, frozen=True, kw_only=True):
    """A token of the reply.

    token: its text. bytes: of its text in UTF-8. logprob: natural logarithm of its probability, before temperature.
    top_logprobs: the likeliest tokens there.
    """

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopLogprob] = []


class OutputText(Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """Text that the model said.

    text: as it was said. annotations: none here. logprobs: of its tokens, if they were asked for.
    """

    text: str
    annotations: list[Any] = []
    logprobs: list[Logprob] = []


class OutputRefusal(Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """Text with which a model declined; only in input.

    refusal: as it was said.
    """

    refusal: str


class MessageItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """A message.

    id: of this item. role: whose it is. content: its parts. status: `in_progress` only inside streams; `incomplete`
    where it was cut off.
    """

    id: str
    role: Literal["user", "system", "developer", "assistant"]
    content: list[InputText | OutputText | OutputRefusal]
    status: Status = "completed"


class FunctionCallItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call that the model made.

    id: of this item. call_id: of the call, for its output. name: of the function. arguments: JSON as the model
    wrote it. status: `in_progress` only inside streams; `incomplete` where it was cut off.
    """

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"


class FunctionCallOutputItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    """What a called function gave back.

    id: of this item. call_id: of the call. output: as text or text parts. status: `in_progress` only inside
    streams; `incomplete` where it was cut off.
    """

    id: str
    call_id: str
    output: str | list[InputText]
    status: Status = "completed"


class SummaryText(Struct, frozen=True, kw_only=True, tag_field="type", tag="summary_text"):
    """A summary of reasoning; only in input.

    text: as it is.
    """

    text: str


class ReasoningText(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    """Reasoning.

    text: as the model wrote it.
    """

    text: str


class ReasoningItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model wrote before its answer.

    id: of this item. summary: none here. content: its parts. status: `in_progress` only inside streams;
    `incomplete` where it was cut off.
    """

    id: str
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    status: Status = "completed"


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem
OutputItem = MessageItem | FunctionCallItem | ReasoningItem


class ItemList(Struct, frozen=True, kw_only=True):
    """A page of items.

    data: in the order that was asked for. first_id, last_id: empty where it is. has_more: there is a next page.
    """

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str
    last_id: str
    has_more: bool


ITEM_DECODER: msgspec.json.Decoder[Item] = msgspec.json.Decoder(Item)
ITEMS_DECODER: msgspec.json.Decoder[list[Item]] = msgspec.json.Decoder(list[Item])
