"""schemathesis: what the served document allows, and what it does not, sent to a running server.

The answers must be what the document says: no 5xx, no other status, header, media type or body. The same examples each
time; a body's `model` is made the server's own, or nearly all would end at 404.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

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


class Exchange(NamedTuple):
    """What is sent: as the document says, or not; how many examples; each made to ask for a stream, or as it comes."""

    method: str
    path: str
    mode: GenerationMode = GenerationMode.POSITIVE
    num_examples: int = 15
    is_streamed: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path} {'streamed' if self.is_streamed else self.mode.value}"


def exchanges() -> Iterator[Exchange]:
    """A body that an earlier route takes too is tried less."""
    seen: list[Any] = []
    for path, item in openapi_document(create_app(Settings()))["paths"].items():
        for method, operation in item.items():
            num_examples = 4 if operation.get("requestBody") in seen else 15
            asked = Exchange(method, path, num_examples=num_examples)
            yield asked
            if "requestBody" in operation:
                yield asked._replace(mode=GenerationMode.NEGATIVE)
                seen.append(operation["requestBody"])
            if "text/event-stream" in operation["responses"]["200"].get("content", {}):
                yield asked._replace(is_streamed=True)


@pytest.fixture(scope="module")
def strange_server() -> Iterator[RunningServer]:
    with running(engine={"max_model_len": 160}, max_n=4) as started:
        yield started
        started.expect_idle()


@pytest.fixture(scope="module")
def document(strange_server: RunningServer) -> Any:
    config = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False, "database": "none"}})
    return schemathesis.openapi.from_url(strange_server.origin + "/schema/openapi.json", config=config)


@pytest.mark.parametrize("asked", list(exchanges()), ids=str)
def test_the_server_answers_as_the_document_says(document: Any, asked: Exchange) -> None:
    operation = document[asked.path][asked.method]
    slow_is_fine = list(HealthCheck)

    @settings(
        max_examples=asked.num_examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=slow_is_fine,
    )
    @given(operation.as_strategy(generation_mode=asked.mode))
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            case.body |= {"model": "fake"} if case.body.get("model") else {}
            case.body |= {"stream": True} if asked.is_streamed else {}
        case.call_and_validate(checks=CHECKS, timeout=20)

    send()
