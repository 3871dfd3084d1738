"""`anaphora chat`: a conversation in the terminal with any OpenAI-compatible server, and what each turn reused."""

import json
from typing import IO, Any

import click

from proxy.asking import api_key_option, asking, base_url_option, first_model, in_one_sentence


@click.command("chat", short_help="Talk to a server, and see per turn what came from the cache.")
@base_url_option
@api_key_option
@click.option("--model", default="", help="Default: the first that the server lists.")
@click.option("--system", default="", help="A system message to begin with.")
@click.option("--load", "loaded", type=click.File("rb"), help="A conversation that /save wrote, to go on with.")
@click.option("--temperature", type=click.FloatRange(0, 2))
@click.option("--top-p", type=click.FloatRange(0, 1))
@click.option("--seed", type=int)
@click.option("--max-tokens", "max_completion_tokens", type=click.IntRange(1), help="Longest reply.")
def chat(
    base_url: str, api_key: str, model: str, system: str, loaded: IO[bytes] | None, **sampling: float | int | None
) -> None:
    """Talk to a server. Each turn says how much of its prompt was cached; /help lists the commands.

    Lines come from standard input, so that a file of questions does as well as a terminal.
    """
    body = _read(loaded) if loaded else {}
    messages = body.pop("messages", [])
    if system:
        messages = [{"role": "system", "content": system}, *(m for m in messages if m.get("role") != "system")]
    options = body | {name: value for name, value in sampling.items() if value is not None}
    from proxy.terminal.branches import Branches
    from proxy.terminal.loop import Chat

    with asking(base_url, api_key) as client:
        with in_one_sentence(client):
            options["model"] = model or body.get("model") or first_model(client)
        Chat(client, Branches(messages), options).run()


_KEPT = ("model", "temperature", "top_p", "seed", "max_completion_tokens")


def _read(file: IO[bytes]) -> dict[str, Any]:
    """The body of a chat completion, or its messages alone; of it what this program can go on with."""
    try:
        body = json.load(file)
    except ValueError as error:
        raise click.ClickException(f"{file.name} is not JSON: {error}.") from None
    if isinstance(body, list):
        body = {"messages": body}
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise click.ClickException(f"{file.name} holds no conversation: an object with a list of messages is wanted.")
    return {name: value for name, value in body.items() if name in _KEPT} | {"messages": messages}
