"""BodyRequest: the bytes of a chat request into its Struct, once, strictly; a fault names OpenAI's `param`.

Litestar would decode twice and coerce (`"temperature": "0.7"`); its `json()` is the one place where it asks
for the body. The nesting bound is checked on the bytes before anything is decoded, in a few passes of C (see
`nests_deeper_than`).
"""

import asyncio
import re
from array import array
from itertools import accumulate
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from proxy.errors import BodyTimeout, ClientDisconnected
from proxy.schemas import CHAT_DECODER, ChatCompletionRequest
from sessions.errors import InvalidRequest

_PATH = re.compile(r"^(?P<message>.*) - at `(?:key in )?\$\.?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`")

_OUTLINE = b'"[]{}'
_OTHERS = bytes(byte for byte in range(256) if byte not in _OUTLINE)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1 and -1 as signed bytes


def nesting_depth(body: bytes) -> int:
    """How deep the JSON text `body` nests arrays and objects, at its deepest; faulty JSON is not found here.

    No byte is looked at from Python: escapes go, then all but quotes and brackets, then what stands between
    quotes; what is left is a walk of +1 and -1 whose highest point is the depth.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outline = body.translate(_STEPS, _OTHERS)
    steps = b"".join(outline.split(b'"')[::2])
    return max(accumulate(array("b", steps)), default=0)


def decode_chat_request(body: bytes, *, max_depth: int, max_messages: int) -> ChatCompletionRequest:
    """Raises InvalidRequest with the first fault's `param`; no more than one short value is quoted."""
    if body.count(b"{") + body.count(b"[") > max_depth and nesting_depth(body) > max_depth:
        raise InvalidRequest(f"The request body is nested more than {max_depth} levels deep.")
    try:
        request = CHAT_DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _fault(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The request body is not valid JSON in UTF-8.") from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    if len(request.messages) > max_messages:
        raise InvalidRequest(
            f"At most {max_messages} messages are accepted, not {len(request.messages)}.", param="messages"
        )
    return request


def _fault(text: str) -> InvalidRequest:
    """`Expected `int`, got `str` - at `$.messages[0].x`` into OpenAI's message and param."""
    match = _PATH.match(text)
    message, path = (match["message"], match["path"]) if match else (text, "")
    missing = _MISSING.fullmatch(message)
    if missing:
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    param = path.removesuffix("[...]")
    message = message if len(message) <= 200 else message[:200] + "…"
    where = f" for '{param}'" if param else ""
    return InvalidRequest(f"Invalid value{where}: {_sentence(message)}", param=param or None, code="invalid_value")


def _sentence(message: str) -> str:
    return message.removeprefix("Invalid value ").replace("Expected", "expected").replace("`", "") + "."


class BodyRequest(Request[Any, Any, Any]):
    """`request_class` of the chat controller. Litestar asks for `body()`, then for `json()`."""

    async def body(self) -> bytes:
        """Raises BodyTimeout, ClientDisconnected, and Litestar's 413."""
        try:
            async with asyncio.timeout(self.app.state.settings.client_timeout_s):
                return await super().body()
        except TimeoutError:
            raise BodyTimeout from None
        except InternalServerException:  # what Litestar makes of a client that leaves while it sends
            raise ClientDisconnected from None

    async def json(self) -> Any:
        """The decoded Struct. Raises InvalidRequest."""
        settings = self.app.state.settings
        return decode_chat_request(
            await self.body(), max_depth=settings.max_json_depth, max_messages=settings.max_messages
        )
