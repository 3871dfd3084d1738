"""The routes beside chat: models, liveness, readiness, metrics."""

from dataclasses import asdict
from typing import Any

from litestar import Controller, HttpMethod, Response, get, route
from litestar.di import NamedDependency
from litestar.params import FromPath
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from proxy.metrics import Metrics
from proxy.schemas import Model, ModelList
from sessions.errors import ModelNotFound
from sessions.service import ChatService

_GET_OR_HEAD = (HttpMethod.GET, HttpMethod.HEAD)


class ModelController(Controller):
    path = "/models"

    @get(summary="The one model served here, as a list")
    async def list_models(self, service: NamedDependency[ChatService]) -> ModelList:
        return ModelList(data=[Model(id=service.model_id, created=service.created)])

    @get("/{model_id:path}", summary="The model, by name")
    async def get_model(self, model_id: FromPath[str], service: NamedDependency[ChatService]) -> Model:
        name = model_id.removeprefix("/")
        if name != service.model_id:
            raise ModelNotFound(name)
        return Model(id=service.model_id, created=service.created)


class SystemController(Controller):
    path = "/"

    @route("/health", http_method=_GET_OR_HEAD, summary="The process answers")
    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    @route(
        "/ready", http_method=_GET_OR_HEAD, summary="New requests would be answered; the index is told, not required"
    )
    async def ready(self, service: NamedDependency[ChatService]) -> Response[dict[str, Any]]:
        readiness = service.readiness()
        return Response(asdict(readiness), status_code=200 if readiness.ready else 503)

    @get("/metrics", summary="Prometheus exposition")
    async def metrics_text(self, metrics: NamedDependency[Metrics]) -> Response[bytes]:
        return Response(metrics.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})
