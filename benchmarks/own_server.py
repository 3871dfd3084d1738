"""A server of this project's own for a run: a child process, its port free, its Redis embedded, its cache of the run.

Models and what was measured of them are the user's, by links: converting weights anew for each run would take longer
than the run. KV, replies and the secret live and go with the run.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.servers import Server, running
from benchmarks.subject import Subject
from proxy.settings import ENV_PREFIX, default_cache_dir

KEPT: Final = ("models", "measured", "native")
SECRET_VARIABLES: Final = ("API_KEYS", "SECRET", "REDIS_URL")
OPTIONS: Final = ("--index", "embedded", "--stable-first", "true", "--log-level", "warning")


@contextmanager
def cache_folder() -> Iterator[Path]:
    """A new folder with links to what the user's cache folder keeps of models."""
    with tempfile.TemporaryDirectory(prefix="anaphora-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for kept in KEPT:
            target = default_cache_dir() / kept
            target.mkdir(parents=True, exist_ok=True)
            (folder / kept).symlink_to(target, target_is_directory=True)
        yield folder


def arguments(model: str, more: Sequence[str]) -> list[str]:
    """Of `anaphora serve`, without port and cache folder."""
    return [*(("--model", model) if model else ()), *OPTIONS, *more]


@asynccontextmanager
async def own_server(model: str, api_key: str, more: Sequence[str] = ()) -> AsyncIterator[Subject]:
    """A server that is ready, ended afterwards. Raises BenchmarkFailed with the end of its output."""
    with cache_folder() as folder:
        command = [sys.executable, "-m", "proxy", "serve", *arguments(model, more), "--cache-dir", str(folder)]
        text = shlex.join(command) + " --port {port}"
        async with running(Server("anaphora", command=text), api_key, {}) as client:
            yield await Subject.look("anaphora", client)


def variables() -> dict[str, str]:
    """Settings that the environment gives the server; secrets are named, not told."""
    found = {name: value for name, value in sorted(os.environ.items()) if name.startswith(ENV_PREFIX)}
    secret = {ENV_PREFIX + name for name in SECRET_VARIABLES}
    return {name: "(set)" if name in secret else value for name, value in found.items()}
