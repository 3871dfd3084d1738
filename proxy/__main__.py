"""The command `anaphora` (also `python -m proxy`). Heavy imports wait for a command: `--help` is instant."""

import contextlib
import gc
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.chat_command import chat
from proxy.doctor_command import doctor
from proxy.explain_command import explain
from proxy.listening import bind, bind_refusal
from proxy.options import SettingsError, load_settings, option_name, settings_options
from proxy.settings import Settings

if TYPE_CHECKING:
    from sessions.service import ChatService
    from sessions.startup import ServiceOptions


class _Commands(click.Group):
    """Knows `bench` by name, and imports it when it is asked for; `--help` of the whole lists it without."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "bench"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "bench":
            return super().get_command(ctx, cmd_name)
        from benchmarks.bench_command import bench

        return bench


@click.group(cls=_Commands, context_settings={"max_content_width": 120})
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


main.add_command(explain)
main.add_command(doctor)
main.add_command(chat)


def _run(settings: Settings) -> None:
    gc.disable()  # what start-up makes, it keeps: looking for garbage in it takes 0.7 s
    import structlog

    from proxy import logs

    # Read by the OpenMP runtime when torch loads it: how long a thread spins for the next operator, then sleeps. Two
    # operators are some 20 microseconds apart. The default is milliseconds, and then a busy neighbour, or our own event
    # loop, finds every core taken and steps become ten times slower (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    logs.configure(settings.log_level, settings.log_format)
    _refuse_shared_prompts(settings)
    try:
        bound = bind(settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        raise bind_refusal(settings, error) from None
    with bound, _cache_dir_refusal(settings.cache_dir):
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        structlog.get_logger("anaphora").info("loading the model", model=settings.model)
        from proxy.server import Server

        server = Server(settings, open_and_freeze)
        server.run(sockets=[bound])
    if server.refusal is not None:
        raise SettingsError(str(server.refusal))
    if not server.started:
        sys.exit(1)


async def open_and_freeze(options: "ServiceOptions") -> "ChatService":
    """Open the service; then take what start-up made out of the garbage collector's sight, and switch that on again.

    A full collection over torch and transformers (half a million objects) stops every thread for some 300 ms. A long
    conversation makes thousands of objects a turn and drops them again: the young are looked at more rarely, too.
    """
    from sessions.startup import open_service

    service = await open_service(options)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()
    return service


def _refuse_shared_prompts(settings: Settings) -> None:
    """Read them once before a model is loaded."""
    from proxy.shared_prompts import read_shared_prompts

    try:
        read_shared_prompts(settings)
    except OSError as error:
        raise SettingsError(f"{option_name('shared_prompts')}: {error.filename}: {error.strerror}.") from None
    except ValueError as error:
        raise SettingsError(f"{option_name('shared_prompts')}: {error}.") from None


@contextlib.contextmanager
def _cache_dir_refusal(cache_dir: Path) -> Iterator[None]:
    """Whatever fails while start-up writes there, or makes the folder, as one sentence."""
    try:
        yield
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else None
        if named is None or not (named.is_relative_to(cache_dir) or cache_dir.is_relative_to(named)):
            raise
        raise SettingsError(
            f"--cache-dir (ANAPHORA_CACHE_DIR): {cache_dir} cannot be used: {error.strerror} ({named})."
        ) from None


if __name__ == "__main__":
    main()
