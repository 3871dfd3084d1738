"""Truncation: leaving out a conversation's oldest messages so that the rest fits. Pure but for the question what fits.

    system │ user assistant │ user assistant │ user assistant │ user
           ^ cut             ^                ^                ^        the kept part begins with a user's message

A cut that moved with every turn would leave nothing of the last turn's prompt to reuse. So it moves in strides of about
a quarter of the context: for many turns the kept part begins at the same message, and only then at a later one.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from sessions.types import ChatRequest, Message

Fits = Callable[[ChatRequest], Awaitable[bool]]


async def truncated(request: ChatRequest, fits: Fits, *, step: int) -> tuple[ChatRequest, int]:
    """The request with the fewest messages left out, and how many. step: characters, between preferred cuts.

    fits: of requests that grow shorter, false at first, then true. Where none does, it is the shortest.
    """
    if await fits(request):
        return request, 0
    num_leading, shorter = leading(request.messages), request
    num_left_out = 0
    for candidates in (strides(request.messages, step), cuts(request.messages)):
        first = await _first_that_fits([_without(request, num_leading, cut) for cut in candidates], fits)
        if candidates:
            chosen = candidates[min(first, len(candidates) - 1)]
            shorter, num_left_out = _without(request, num_leading, chosen), chosen - num_leading
        if first < len(candidates):
            break
    return shorter, num_left_out


def at_most(messages: Sequence[Message], most: int) -> tuple[Sequence[Message], int]:
    """The latest of the messages, `most` at most, and how many were left out; all of them where no cut does it.

    Instructions stay, the rest begins with a user's message, and the cut moves in strides of a quarter of `most`.
    """
    excess = len(messages) - most
    if excess <= 0:
        return messages, 0
    num_leading, stride = leading(messages), max(1, most // 4)
    possible = [cut - num_leading for cut in cuts(messages) if cut - num_leading >= excess]
    if not possible:
        return messages, 0
    num_left_out = next((num for num in possible if num >= -(-excess // stride) * stride), possible[0])
    return (*messages[:num_leading], *messages[num_leading + num_left_out :]), num_left_out


def leading(messages: Sequence[Message]) -> int:
    """Messages at the front that are never left out: instructions."""
    return next((at for at, message in enumerate(messages) if message.role not in ("system", "developer")), 0)


def cuts(messages: Sequence[Message]) -> list[int]:
    """Where the kept part may begin: at users' messages after the first."""
    return [at for at in range(leading(messages) + 1, len(messages)) if messages[at].role == "user"]


def strides(messages: Sequence[Message], step: int) -> list[int]:
    """Of the cuts, the first past each multiple of `step` characters: the same ones when messages are added."""
    chosen: list[int] = []
    num_characters = num_strides = 0
    possible = set(cuts(messages))
    for at, message in enumerate(messages):
        if at in possible and num_characters // step > num_strides:
            num_strides = num_characters // step
            chosen.append(at)
        num_characters += len(message.content)
    return chosen


async def _first_that_fits(shorter: Sequence[ChatRequest], fits: Fits) -> int:
    """Its index; how many there are, if none does."""
    low, high = 0, len(shorter)
    while low < high:
        middle = (low + high) // 2
        if await fits(shorter[middle]):
            high = middle
        else:
            low = middle + 1
    return low


def _without(request: ChatRequest, num_leading: int, cut: int) -> ChatRequest:
    return replace(request, messages=(*request.messages[:num_leading], *request.messages[cut:]))
