"""schemathesis: what the served document allows, and what it does not, sent to a running server.

The answers must be what the document says: no 5xx, no other status, header, media type or body. The same examples each
time; a body's `model` is made the server's own, or nearly all would end at 404.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from proxy.app import create_app
from proxy.openapi import openapi_document
from proxy.settings import Settings
from tests.contract.conftest import RunningServer, running

CHECKS: list[CheckFunction] = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def exchanges() -> Iterator[Any]:
    """Path, method, what to send (as the document says, or not), and what each body is made to have."""
    positive, negative = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    for path, item in openapi_document(create_app(Settings()))["paths"].items():
        for method, operation in item.items():
            yield pytest.param(path, method, positive, {"model": "fake"}, id=f"{method} {path}")
            if "requestBody" in operation:
                yield pytest.param(path, method, negative, {"model": "fake"}, id=f"{method} {path} wrong")
            if "text/event-stream" in operation["responses"]["200"].get("content", {}):
                as_stream = {"model": "fake", "stream": True}
                yield pytest.param(path, method, positive, as_stream, id=f"{method} {path} streamed")


@pytest.fixture(scope="module")
def strange_server() -> Iterator[RunningServer]:
    with running(engine={"max_model_len": 160}, max_n=4) as started:
        yield started
        started.expect_idle()


@pytest.fixture(scope="module")
def document(strange_server: RunningServer) -> Any:
    config = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False, "database": "none"}})
    return schemathesis.openapi.from_url(strange_server.origin + "/schema/openapi.json", config=config)


@pytest.mark.parametrize(("path", "method", "mode", "always"), list(exchanges()))
def test_the_server_answers_as_the_document_says(
    document: Any, path: str, method: str, mode: GenerationMode, always: dict[str, Any]
) -> None:
    operation = document[path][method]

    @settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            case.body.update({name: value for name, value in always.items() if name == "stream" or case.body.get(name)})
        case.call_and_validate(checks=CHECKS, timeout=20)

    send()
