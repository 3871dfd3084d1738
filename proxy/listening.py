"""The listening socket: bound before a model is loaded, so that a port in use is known at once."""

import errno
import socket

import click

from proxy.options import SettingsError
from proxy.settings import Settings


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


def bind_refusal(settings: Settings, error: OSError | UnicodeError) -> click.ClickException:
    """Exit code 1 for a port in use, which may be free in a moment; 2 for an address that cannot be meant."""
    address = f"{settings.host}:{settings.port}"
    if isinstance(error, UnicodeError):
        return SettingsError(f"Cannot listen on {address}: that is no host name.")
    if error.errno == errno.EADDRINUSE:
        return click.ClickException(f"{address} is in use; choose another --port (ANAPHORA_PORT).")
    return SettingsError(f"Cannot listen on {address}: {error.strerror}.")
