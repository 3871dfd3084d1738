"""/schema: the OpenAPI document, and a page that shows it. It loads nothing from elsewhere: its policy forbids that."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from litestar import Controller, Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import File

_FOLDER = Path(str(files("proxy") / "swagger"))
_MEDIA_TYPES = {"start.js": "text/javascript", "swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class DocsController(Controller):
    """`app.state.openapi` makes the document: in a thread, for its making takes some hundredths of a second."""

    path = "/schema"
    include_in_schema = False

    @get()
    async def page(self) -> File:
        return _file("index.html", "text/html")

    @get("/openapi.json", sync_to_thread=True)
    def document(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        return Response(request.app.state.openapi(), media_type="application/json")

    @get("/{name:str}")
    async def asset(self, name: FromPath[str]) -> File:
        if name not in _MEDIA_TYPES:
            raise NotFoundException
        return _file(name, _MEDIA_TYPES[name])


def _file(name: str, media_type: str) -> File:
    return File(_FOLDER / name, media_type=media_type, content_disposition_type="inline", headers=_HEADERS)
