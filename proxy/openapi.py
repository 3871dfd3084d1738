"""The OpenAPI document, out of the routes that are served: one walk, pure.

    route        path, methods, path and query parameters
    signature    `data` is the body, the return annotation the answer
    guards       401 with the key's security scheme, 429
    opt          other errors, events of a stream (`proxy/documented.py`)
    docstrings   of the handler, and of the Structs for their fields (`proxy/struct_schemas.py`)

Schemas are msgspec's, which is what checks bodies. Litestar's generator is not asked: it loses the bounds of fields
that may be null and of what is nested, and knows neither headers nor events.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from inspect import cleandoc
from types import UnionType
from typing import Any, Union, get_args, get_origin

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter, QueryParameter
from litestar.response import Response
from litestar.routes import HTTPRoute

from proxy import sse
from proxy.auth import require_api_key
from proxy.documented import OPT_KEY
from proxy.errors import ErrorBody
from proxy.limits import admit
from proxy.struct_schemas import component_schemas

JSON = "application/json"

ERRORS = {
    400: "The request makes no sense; `param` names the parameter.",
    401: "No API key, or none that this server knows (`invalid_api_key`).",
    404: "No such model (`model_not_found`), or no such object.",
    408: "The body did not arrive in time (`body_timeout`).",
    413: "The body is larger than this server accepts (`request_too_large`).",
    429: "Too much is in flight or waiting (`rate_limit_exceeded`).",
    500: "The server's own fault (`engine_failed`, `internal_error`).",
    503: "The server is shutting down (`shutting_down`), full (`too_many_connections`), or cannot reach what is stored "
    "(`store_unavailable`).",
    504: "The reply took longer than this server allows (`completion_timeout`).",
}
"""What a client may be told, by status. The codes are those of `proxy/errors.py`."""

_HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": {
        "description": "Names this request in the server's log; the request's own if that is sane.",
        "schema": {"type": "string"},
        "required": True,
    },
    "Retry-After": {
        "description": "Seconds until it makes sense to come back.",
        "schema": {"type": "integer", "minimum": 1},
        "required": True,
    },
    "WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}, "required": True},
    "x-should-retry": {
        "description": "A retry would fail alike; OpenAI's clients obey it.",
        "schema": {"type": "string", "const": "false"},
        "required": True,
    },
}

_HEADERS_OF_ERRORS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After", 504: "x-should-retry"}

_DESCRIPTION = """
An OpenAI-compatible chat server in which turn N+1 of a conversation pays only for its new tokens.

Every error has OpenAI's body, every answer `x-request-id`. Fields that a body has and this document has not are
ignored; `null` is as good as absent. Before there is a request, a connection may also be answered with 400
`invalid_http`, 408 `headers_timeout`, 431 `headers_too_large` or 503 `too_many_connections`.
"""


@dataclass(frozen=True, slots=True)
class _Operation:
    path: str
    method: str
    handler: HTTPRouteHandler

    @property
    def body(self) -> Any:
        """Type of the body, or None."""
        data = self.handler.parsed_fn_signature.parameters.get("data")
        return None if data is None else data.annotation

    @property
    def answer(self) -> Any:
        """Type of the answer's body: `T` of `T`, `Response[T]` and `Response[T] | Stream`."""
        annotation = self.handler.parsed_fn_signature.return_type.annotation
        union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        [answer] = [
            get_args(member)[0] if get_origin(member) is Response else member
            for member in union
            if get_origin(member) is Response or not issubclass(get_origin(member) or member, Response)
        ]
        return answer

    @property
    def said(self) -> dict[str, Any]:
        """What `documented.answers` was told."""
        return {"errors": (), "events": None, "other": {}, "example": None, **self.handler.opt.get(OPT_KEY, {})}

    @property
    def types(self) -> list[Any]:
        """Of all bodies, those of errors left out."""
        found = [self.body, self.answer, self.said["events"], *self.said["other"].values()]
        return [kind for kind in found if kind is not None and kind is not bytes]

    @property
    def guards(self) -> list[Any]:
        return list(self.handler.resolve_guards())

    def errors(self) -> list[int]:
        """Statuses with OpenAI's error body."""
        statuses = {*self.said["errors"], 500, 503} - set(self.said["other"])
        if self.body is not None:
            statuses |= {400, 408, 413}
        if require_api_key in self.guards:
            statuses.add(401)
        if admit in self.guards:
            statuses.add(429)
        return sorted(statuses)


def openapi_document(app: Litestar) -> dict[str, Any]:
    """OpenAPI 3.2 (which has events), of every route that does not say `include_in_schema=False`."""
    operations = list(_operations(app))
    kinds = list(dict.fromkeys([ErrorBody, *(kind for operation in operations for kind in operation.types)]))
    schemas, components = component_schemas(kinds)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _described(operation, schemas)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.2.0",
        "info": {"title": "Anaphora", "version": version("anaphora"), "description": cleandoc(_DESCRIPTION)},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": _HEADERS,
            "responses": {str(status): _error(status, schemas[ErrorBody]) for status in ERRORS},
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "As with OpenAI. A server without keys of its own takes any, and none.",
                }
            },
        },
    }


def _operations(app: Litestar) -> Iterator[_Operation]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                if handler.resolve_include_in_schema():
                    yield _Operation(route.path_format, method, handler)


def _described(operation: _Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    handler = operation.handler
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}{operation.path}".translate(str.maketrans("/", "_", "{}")),
        "tags": handler.resolve_tags(),
        "summary": handler.summary,
        "responses": _responses(operation, schemas),
    }
    if handler.fn.__doc__:
        described["description"] = cleandoc(handler.fn.__doc__)
    parameters = [_parameter(*named) for named in handler.parsed_fn_signature.parameters.items()]
    if any(parameters):
        described["parameters"] = [parameter for parameter in parameters if parameter]
    if operation.body is not None:
        content = {"schema": schemas[operation.body]}
        if operation.said["example"] is not None:
            content["example"] = operation.said["example"]
        described["requestBody"] = {"required": True, "content": {JSON: content}}
    if require_api_key in operation.guards:
        described["security"] = [{"api_key": []}]
    return described


def _parameter(name: str, field: Any) -> dict[str, Any] | None:
    kwarg = field.kwarg_definition
    if not isinstance(kwarg, PathParameter | QueryParameter):
        return None
    is_path = isinstance(kwarg, PathParameter)
    [schema] = component_schemas([field.annotation])[0].values()
    schema |= {word: bound for word, bound in (("minimum", kwarg.ge), ("maximum", kwarg.le)) if bound is not None}
    described = {
        "name": name,
        "in": "path" if is_path else "query",
        "required": is_path or field.is_required,
        "schema": schema,
    }
    return described | ({"description": kwarg.description} if kwarg.description else {})


def _responses(operation: _Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    status = operation.handler.status_code
    responses = {str(status): _success(operation, schemas)}
    for other, kind in operation.said["other"].items():
        responses[str(other)] = {
            "description": "The same, and the answer is no.",
            "headers": _header_references("x-request-id"),
            "content": {JSON: {"schema": {"anyOf": [schemas[kind], schemas[ErrorBody]]}}},
        }
    if operation.method == "HEAD":
        for response in responses.values():
            response.pop("content", None)
    for error in operation.errors():
        responses[str(error)] = {"$ref": f"#/components/responses/{error}"}
    return dict(sorted(responses.items()))


def _success(operation: _Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    if operation.answer is bytes:
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    else:
        content = {JSON: {"schema": schemas[operation.answer]}}
    if operation.said["events"] is not None:
        content[sse.MEDIA_TYPE] = {"itemSchema": _event([schemas[operation.said["events"]], schemas[ErrorBody]])}
    return {"description": "The answer.", "headers": _header_references("x-request-id"), "content": content}


def _event(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One server-sent event; what `data` holds is JSON, but for the last."""
    encoded = {"contentMediaType": JSON, "contentSchema": {"anyOf": schemas}}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, encoded]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _error(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    also = _HEADERS_OF_ERRORS.get(status)
    return {
        "description": ERRORS[status],
        "headers": _header_references("x-request-id", *([also] if also else [])),
        "content": {JSON: {"schema": schema}},
    }


def _header_references(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
