"""The routes beside chat: models, liveness, readiness, metrics."""

from typing import Annotated, Literal

from litestar import Controller, HttpMethod, Response, get, route
from litestar.di import NamedDependency
from litestar.params import PathParameter
from msgspec import Struct
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from proxy.answer_schemas import Model, ModelList
from proxy.documented import answers
from proxy.metrics import Metrics
from sessions.errors import ModelNotFound
from sessions.reports import Readiness
from sessions.service import ChatService

ModelName = Annotated[str, PathParameter(description="May hold slashes, as a hub id does.")]
_GET_OR_HEAD = (HttpMethod.GET, HttpMethod.HEAD)


class Health(Struct, frozen=True, kw_only=True):
    """status: always the same."""

    status: Literal["ok"] = "ok"


class ModelController(Controller):
    path = "/models"
    tags = ("Models",)

    @get(summary="The one model served here, as a list")
    async def list_models(self, service: NamedDependency[ChatService]) -> ModelList:
        return ModelList(data=[Model(id=service.model_id, created=service.created)])

    @get("/{model_id:path}", summary="The model, by name", opt=answers(404))
    async def get_model(self, model_id: ModelName, service: NamedDependency[ChatService]) -> Model:
        name = model_id.removeprefix("/")
        if name != service.model_id:
            raise ModelNotFound(name)
        return Model(id=service.model_id, created=service.created)


class SystemController(Controller):
    path = "/"
    tags = ("Operations",)

    @route("/health", http_method=_GET_OR_HEAD, summary="The process answers")
    async def health(self) -> Health:
        return Health()

    @route(
        "/ready",
        http_method=_GET_OR_HEAD,
        summary="New requests would be answered; the index is told, not required",
        opt=answers(other={503: Readiness}),
    )
    async def ready(self, service: NamedDependency[ChatService]) -> Response[Readiness]:
        readiness = service.readiness()
        return Response(readiness, status_code=200 if readiness.ready else 503)

    @get("/metrics", summary="Prometheus exposition")
    async def metrics_text(self, metrics: NamedDependency[Metrics]) -> Response[bytes]:
        return Response(metrics.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})
