"""What the commands that ask a server have in common: its client, its first model, its refusals as one sentence."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from openai import OpenAI

base_url_option = click.option(
    "--base-url", default="http://127.0.0.1:8000/v1", show_default=True, envvar="OPENAI_BASE_URL"
)
api_key_option = click.option("--api-key", default="none", envvar="OPENAI_API_KEY", help="[OPENAI_API_KEY]")


@contextlib.contextmanager
def asking(base_url: str, api_key: str) -> Iterator["OpenAI"]:
    """A client of the server at `base_url`, closed in the end; nothing is sent yet."""
    from openai import OpenAI

    with OpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
        yield client


@contextlib.contextmanager
def in_one_sentence(client: "OpenAI") -> Iterator[None]:
    """Whatever the server refuses, or fails at, as a ClickException."""
    from openai import APIConnectionError, APIError, APIStatusError

    try:
        yield
    except APIStatusError as error:
        body: Any = error.body
        said = body.get("message") if isinstance(body, dict) else None
        raise click.ClickException(str(said or f"{client.base_url} answers {error.status_code}.")) from None
    except APIConnectionError:
        raise click.ClickException(f"No server answers at {str(client.base_url).rstrip('/')}.") from None
    except APIError as error:
        raise click.ClickException(error.message) from None


def first_model(client: "OpenAI") -> str:
    """The first that the server lists. Raises ClickException if it lists none, or does not look like such a server."""
    try:
        return str(client.models.list().data[0].id)
    except (AttributeError, IndexError, TypeError, ValueError):
        raise click.ClickException(f"{client.base_url} lists no model; name one with --model.") from None
