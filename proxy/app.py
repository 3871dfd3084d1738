"""The factory: settings and a service into a Litestar application. Wiring only.

/v1            RequestLog ▸ guard: API key ▸ [guard: admission] what generates, or what is stored; ModelController
/tokenize /detokenize   the same, without `/v1`, where other servers have them
/health /ready /metrics /schema /ui  open
"""

import functools

from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.middleware import DefineMiddleware

from proxy.auth import KeyRing, require_api_key
from proxy.cache import CacheController
from proxy.chat import ChatController
from proxy.completions import CompletionController
from proxy.conversations import ConversationController
from proxy.docs_page import DocsController
from proxy.errors import EXCEPTION_HANDLERS
from proxy.limits import InFlight, admit
from proxy.live import Live, LiveController
from proxy.live_window import RecentPace
from proxy.logs import RequestLog, attach_request_id
from proxy.metrics import Metrics
from proxy.openapi import openapi_document
from proxy.reply import OpenReplies
from proxy.replying import Replier
from proxy.responses import ResponseController
from proxy.schemas import ENCODER
from proxy.settings import Settings
from proxy.system import ModelController, SystemController
from proxy.tokenizing import RenderController, TokenizerController
from proxy.ui_page import UiController
from sessions.service import ChatService


def create_app(settings: Settings, service: ChatService | None = None) -> Litestar:
    """A service not given must be in `app.state.service` before the first request; who opens one closes it.

    What requests share is in `app.state`, nothing in guards or middleware: Litestar copies those for every
    route. settings, key_ring, in_flight, metrics, live, service (once open), open_replies (a drain ends them at its
    time limit), openapi (makes the encoded document, once).
    """

    state = State({"settings": settings, "open_replies": OpenReplies()})
    if service is not None:
        state.service = service
    state.key_ring = KeyRing(settings.key_pairs())
    state.in_flight = InFlight(settings.max_inflight, settings.max_inflight_per_tenant)
    state.metrics = Metrics(lambda: state.service.stats())  # noqa: PLW0108  (late: the service may not be open)
    state.live = Live(RecentPace(state.metrics))
    app = Litestar(
        route_handlers=[
            _api_router(),
            _root_router(),
            SystemController,
            DocsController,
            *([UiController] if settings.ui else []),
        ],
        state=state,
        dependencies={
            "settings": Provide(_provide_settings),
            "service": Provide(_provide_service),
            "metrics": Provide(_provide_metrics),
            "live": Provide(_provide_live),
            "replier": Provide(_provide_replier),
        },
        exception_handlers=EXCEPTION_HANDLERS,
        before_send=[attach_request_id],
        request_max_body_size=settings.max_body_bytes,
        cors_config=CORSConfig(allow_origins=settings.cors_origin_list) if settings.cors_origins else None,
        logging_config=None,
        openapi_config=None,
    )
    app.state.openapi = functools.cache(lambda: ENCODER.encode(openapi_document(app)))
    return app


def _api_router() -> Router:
    chat = Router(
        "/",
        route_handlers=[
            ChatController,
            CompletionController,
            RenderController,
            TokenizerController,
            ResponseController,
            ConversationController,
            CacheController,
        ],
        guards=[admit],
    )
    return Router(
        "/v1",
        route_handlers=[chat, ModelController, LiveController],
        guards=[require_api_key],
        middleware=[DefineMiddleware(RequestLog)],
    )


def _root_router() -> Router:
    """What other servers have outside `/v1`, under the same guards."""
    return Router(
        "/",
        route_handlers=[TokenizerController],
        guards=[require_api_key, admit],
        middleware=[DefineMiddleware(RequestLog)],
    )


async def _provide_settings(state: State) -> Settings:
    settings: Settings = state.settings
    return settings


async def _provide_service(state: State) -> ChatService:
    service: ChatService = state.service
    return service


async def _provide_metrics(state: State) -> Metrics:
    metrics: Metrics = state.metrics
    return metrics


async def _provide_live(state: State) -> Live:
    live: Live = state.live
    return live


async def _provide_replier(state: State) -> Replier:
    return Replier(state.service, state.settings, state.metrics, state.open_replies)
