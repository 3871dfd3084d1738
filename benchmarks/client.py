"""Streamed chat completions through the OpenAI SDK, timed: when each piece arrived, and what the usage said."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from openai import APIConnectionError, APIStatusError, AsyncOpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat.chat_completion_chunk import Choice

Messages = list[ChatCompletionMessageParam]
TIMEOUT_S: Final = 900.0
POLL_S: Final = 0.2
LOADING: Final = (502, 503)
"""What a server, or a proxy before it, says while it loads its model."""


class BenchmarkFailed(Exception):
    """A server did something that makes its figures meaningless; the message says what."""


@dataclass(slots=True)
class Reply:
    """One streamed reply. Times are time.monotonic().

    arrivals: of each piece with text, said or thought, or with a part of a call. ended_at: of the piece with the finish
    reason. usage: None until the end. anaphora: what this project's server says of the prompt; empty for others.
    """

    sent_at: float
    arrivals: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    ended_at: float | None = None
    usage: CompletionUsage | None = None
    anaphora: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def first_at(self) -> float:
        """The first text; for a reply without any (a special token, half a character) its end."""
        if self.arrivals:
            return self.arrivals[0]
        if self.ended_at is None:
            raise BenchmarkFailed("a reply ended without a token")
        return self.ended_at

    @property
    def last_at(self) -> float:
        return max(self.first_at, self.ended_at or 0.0)

    @property
    def time_to_first_token_s(self) -> float:
        return self.first_at - self.sent_at

    @property
    def num_prompt_tokens(self) -> int:
        return self._known_usage.prompt_tokens

    @property
    def num_tokens(self) -> int:
        """Completion tokens as the server counted them: a piece may hold several, or a token no text."""
        return self._known_usage.completion_tokens

    @property
    def num_cached_tokens(self) -> int | None:
        """None where the server does not say."""
        details = self._known_usage.prompt_tokens_details
        return details.cached_tokens if details else None

    @property
    def _known_usage(self) -> CompletionUsage:
        if self.usage is None:
            raise BenchmarkFailed("the server sent no usage (stream_options.include_usage)")
        return self.usage


class Client:
    """One server's chat endpoint: greedy, streamed, with usage. extra_body: fields beyond OpenAI's."""

    def __init__(self, base_url: str, api_key: str, extra_body: Mapping[str, Any]) -> None:
        # A connection for each request: llama.cpp closes idle ones, and a request that meets the close is lost.
        self._openai = AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            timeout=TIMEOUT_S,
            max_retries=0,
            default_headers={"Connection": "close"},
        )
        self._extra_body = dict(extra_body)
        self.model = ""

    async def wait_ready(self, timeout_s: float, has_ended: Callable[[], bool]) -> None:
        """Until the server lists a model and answers one request. Raises BenchmarkFailed if it will not, or has ended.

        Listing alone is not enough: llama.cpp lists its model while it loads it.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._is_ready():
                    if has_ended():
                        raise BenchmarkFailed("the server ended before it was ready")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise BenchmarkFailed(f"the server was not ready in {timeout_s:.0f} s") from None

    async def _is_ready(self) -> bool:
        """Raises BenchmarkFailed for an answer that waiting will not mend."""
        try:
            self.model = (await self._openai.models.list()).data[0].id
            await self.ask([{"role": "user", "content": "Hello"}], 1)
        except (APIConnectionError, IndexError):
            return False
        except APIStatusError as error:
            if error.status_code in LOADING:
                return False
            raise BenchmarkFailed(f"the server refuses a plain request: {error}") from error
        return True

    async def ask(self, messages: Messages, max_tokens: int, reply: Reply | None = None, **fields: Any) -> Reply:
        """Stream one reply to its end. Into `reply` where given, so that others can watch it grow.

        fields: of this request's body, beside those of all.
        """
        reply = reply or Reply(0.0)
        reply.sent_at = time.monotonic()
        stream = await self._openai.chat.completions.create(
            model=self.model,
            messages=messages,
            temperature=0,
            max_tokens=max_tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=self._extra_body | fields,
        )
        async with stream:
            async for chunk in stream:
                now = time.monotonic()
                reply.usage = chunk.usage or reply.usage
                reply.anaphora |= (chunk.model_extra or {}).get("anaphora") or {}
                for choice in chunk.choices:
                    _take(reply, choice, now)
        return reply

    async def post(self, path: str, messages: Messages, **fields: Any) -> dict[str, Any]:
        """A request of this project's own routes, whose bodies are those of chat completions."""
        body = {"model": self.model, "messages": messages, **fields}
        return await self._openai.post(path, body=body, cast_to=dict[str, Any])

    async def get(self, path: str) -> dict[str, Any]:
        return await self._openai.get(path, cast_to=dict[str, Any])

    async def get_text(self, path: str) -> str:
        """Of a route beside `/v1`, such as `/metrics`."""
        response = await self._openai.get(
            str(self._openai.base_url.join("/")).rstrip("/") + path, cast_to=httpx.Response
        )
        return response.text

    async def ask_all(self, conversations: Sequence[Messages], max_tokens: int) -> list[Reply]:
        """All at once."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.ask(messages, max_tokens)) for messages in conversations]
        return [task.result() for task in tasks]

    async def aclose(self) -> None:
        await self._openai.close()


def _take(reply: Reply, choice: Choice, now: float) -> None:
    delta = choice.delta
    if delta.content or delta.tool_calls or (delta.model_extra or {}).get("reasoning_content"):
        reply.arrivals.append(now)
        reply.pieces.append(delta.content or "")
    if choice.finish_reason:
        reply.ended_at = now
