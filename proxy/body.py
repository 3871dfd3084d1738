"""BodyRequest: the bytes of a chat request into its Struct, once, strictly; a fault names OpenAI's `param`.

Litestar would decode twice and coerce (`"temperature": "0.7"`); its `json()` is the one place where it asks
for the body. The nesting bound is checked on the bytes before anything is decoded, in a few passes of C (see
`nests_deeper_than`).
"""

import asyncio
import re
from array import array
from itertools import accumulate
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from proxy.errors import BodyTimeout, ClientDisconnected
from proxy.schemas import CHAT_DECODER, ChatCompletionRequest
from proxy.settings import Settings
from sessions.errors import InvalidRequest

Body = TypeVar("Body")

_PATH = re.compile(r"^(?P<message>.*) - at `(?:key` in `)?\$\.?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`")

_OUTLINE = b'"[]{}'
_OTHERS = bytes(byte for byte in range(256) if byte not in _OUTLINE)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1 and -1 as signed bytes


def nesting_depth(body: bytes) -> int:
    """How deep the JSON text `body` nests arrays and objects, at its deepest; faulty JSON is not found here.

    No byte is looked at from Python: escapes go, then all but quotes and brackets, then quotes that meet (a string
    without brackets, or two that touch: nothing is between them), then what stands between quotes; what is left is a
    walk of +1 and -1 whose highest point is the depth.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outline = body.translate(_STEPS, _OTHERS).replace(b'""', b"")
    steps = b"".join(outline.split(b'"')[::2])
    return max(accumulate(array("b", steps)), default=0)


def decode_body(body: bytes, decoder: msgspec.json.Decoder[Body], *, max_depth: int) -> Body:
    """Raises InvalidRequest with the first fault's `param`; no more than one short value is quoted."""
    if body.count(b"{") + body.count(b"[") > max_depth and nesting_depth(body) > max_depth:
        raise InvalidRequest(f"The request body is nested more than {max_depth} levels deep.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise fault(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The request body is not valid JSON in UTF-8.") from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None


def converted(value: Any, kind: type[Body], where: str) -> Body:
    """What was decoded as it came, as a Struct. Raises InvalidRequest. where: it stands in the body."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise fault(str(error), where) from None


def decode_chat_request(body: bytes, *, max_depth: int, max_messages: int) -> ChatCompletionRequest:
    """As `decode_body`, and bounds the messages."""
    request = decode_body(body, CHAT_DECODER, max_depth=max_depth)
    check_count(len(request.messages), max_messages, "messages")
    return request


def check_count(count: int, most: int, param: str) -> None:
    if count > most:
        raise InvalidRequest(f"At most {most} messages are accepted, not {count}.", param=param)


def fault(text: str, under: str = "") -> InvalidRequest:
    """msgspec's `Expected `int`, got `str` - at `$.messages[0].x`` into OpenAI's message and param.

    under: where what was decoded stands in the body.
    """
    match = _PATH.match(text)
    message, path = (match["message"], match["path"]) if match else (text, "")
    path = ".".join(filter(None, (under, path)))
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
    """`request_class` of controllers with a chat request's body. Litestar asks for `body()`, then for `json()`."""

    async def body(self) -> bytes:
        """No bytes are an object without fields: Litestar would take them for no argument, and name ours.

        Raises BodyTimeout, ClientDisconnected, and Litestar's 413.
        """
        try:
            async with asyncio.timeout(self.app.state.settings.client_timeout_s):
                return await super().body() or b"{}"
        except TimeoutError:
            raise BodyTimeout from None
        except InternalServerException:  # what Litestar makes of a client that leaves while it sends
            raise ClientDisconnected from None

    async def json(self) -> Any:
        """The decoded Struct. Raises InvalidRequest."""
        return self.decode(await self.body(), self.app.state.settings)

    def decode(self, body: bytes, settings: Settings) -> Any:
        """What other bodies than a chat request's override."""
        return decode_chat_request(body, max_depth=settings.max_json_depth, max_messages=settings.max_messages)
