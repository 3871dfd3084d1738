"""The command `anaphora` (also `python -m proxy`). Heavy imports wait for a command: `--help` is instant."""

import errno
import gc
import importlib.metadata
import os
import socket
import sys
from typing import TYPE_CHECKING

import click

from proxy.options import load_settings, settings_options
from proxy.settings import Settings

if TYPE_CHECKING:
    from sessions.service import ChatService
    from sessions.startup import ServiceOptions


@click.group(context_settings={"max_content_width": 120})
@click.version_option(importlib.metadata.version("anaphora"), prog_name="anaphora")
def main() -> None:
    """An OpenAI-compatible chat server where turn N+1 of a conversation pays only for its new tokens."""


def _serve(**given: str | None) -> None:
    _run(load_settings(given))


main.add_command(
    click.Command(
        "serve",
        params=settings_options(),
        callback=_serve,
        help="Serve one model over HTTP. Each option is also an environment variable; the command line wins.",
    )
)


def _run(settings: Settings) -> None:
    from proxy import logs

    # Read by the OpenMP runtime when torch loads it. Threads that spin between two operators hold the cores that the
    # event loop, and whatever else runs here, then has to wait for: a busy neighbour made steps ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logs.configure(settings.log_level, settings.log_format)
    try:
        bound = bind(settings.host, settings.port)
    except OSError as error:
        raise click.ClickException(_bind_sentence(settings, error)) from None
    with bound:
        click.echo(f"Loading the model '{settings.model}' …", err=True)
        from proxy.server import Server

        server = Server(settings, open_and_freeze)
        server.run(sockets=[bound])
    if server.refusal is not None:
        raise click.ClickException(str(server.refusal))
    if not server.started:
        sys.exit(1)


async def open_and_freeze(options: "ServiceOptions") -> "ChatService":
    """Open the service, then take all that start-up made out of the garbage collector's sight.

    A full collection over torch and transformers (half a million objects) stops every thread for some 300 ms.
    """
    from sessions.startup import open_service

    service = await open_service(options)
    gc.collect()
    gc.freeze()
    return service


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening: a port in use is known before a model is loaded. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_sentence(settings: Settings, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{settings.host}:{settings.port} is in use; choose another --port (ANAPHORA_PORT)."
    return f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}."


if __name__ == "__main__":
    main()
