"""/ui: the page that shows the cache living. Static files, without a key; what it shows it asks `/v1` for, with one."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from litestar import Controller, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import File

_FOLDER: Final = Path(str(files("proxy") / "ui"))
_MEDIA_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class UiController(Controller):
    """Left out of the app where the setting `ui` is false."""

    path = "/ui"
    include_in_schema = False

    @get()
    async def page(self) -> File:
        return _file("index.html")

    @get("/{name:str}")
    async def asset(self, name: FromPath[str]) -> File:
        """Raises NotFoundException for all but the folder's own files."""
        if name == "index.html" or name not in _NAMES:
            raise NotFoundException
        return _file(name)


_NAMES: Final = frozenset(path.name for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES)


def _file(name: str) -> File:
    media_type = _MEDIA_TYPES[Path(name).suffix]
    return File(_FOLDER / name, media_type=media_type, content_disposition_type="inline", headers=_HEADERS)
