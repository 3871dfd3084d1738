"""One streamed reply and its figures. Talks to the server; prints nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(slots=True)
class Reply:
    """text: so far, and all of it in the end. first_after_s: from asking to the first piece. usage: as the server says.

    was_stopped: by the user; then the server says no usage. finish_reason: the server's, in the end.
    """

    text: str = ""
    first_after_s: float | None = None
    usage: Any = None
    was_stopped: bool = False
    finish_reason: str | None = None

    def figures(self) -> str:
        """1,204 prompt · 1,187 cached · 17 new · TTFT 41 ms"""
        parts = ["stopped"] if self.was_stopped else []
        if self.usage is not None:
            prompt, details = self.usage.prompt_tokens, self.usage.prompt_tokens_details
            cached = None if details is None else details.cached_tokens
            parts.append(f"{prompt:,} prompt")
            parts += ["cached: not said"] if cached is None else [f"{cached:,} cached", f"{prompt - cached:,} new"]
        if self.first_after_s is not None:
            parts.append(f"TTFT {self.first_after_s * 1000:,.0f} ms")
        if self.finish_reason == "length":
            parts.append("cut at the limit")
        return " · ".join(parts)


def talk(client: "OpenAI", body: dict[str, Any], show: Callable[[str, bool], None]) -> Reply:
    """Ask for `body`'s reply. show: gets each piece as it comes, and whether it is a thought.

    Ctrl-C ends the reply, not the program: what was said until then stays. Raises as the client does.
    """
    reply = Reply()
    asked_at = time.monotonic()
    try:
        with client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}) as stream:
            for chunk in stream:
                reply.usage = chunk.usage or reply.usage
                for choice in chunk.choices:
                    reply.finish_reason = choice.finish_reason or reply.finish_reason
                    for piece, is_thought in _pieces(choice.delta):
                        if reply.first_after_s is None:
                            reply.first_after_s = time.monotonic() - asked_at
                        show(piece, is_thought)
                        reply.text += "" if is_thought else piece
    except KeyboardInterrupt:
        reply.was_stopped = True
    return reply


def _pieces(delta: Any) -> list[tuple[str, bool]]:
    thought = getattr(delta, "reasoning_content", None) or ""
    return [piece for piece in ((thought, True), (delta.content or "", False)) if piece[0]]
