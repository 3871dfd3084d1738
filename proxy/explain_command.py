"""`anaphora explain`: two chat requests side by side, or one against a running server's cache. Prints; reads files.

anaphora explain request.json                 why it finds no more of itself in the server's cache
anaphora explain request.json other.json      what the two share, and where they part, with the other sent first
"""

import json
from pathlib import Path
from typing import IO, Any

import click

from proxy.asking import api_key_option, asking, base_url_option, first_model, in_one_sentence


@click.command("explain", short_help="Why a chat request misses the cache, to the character.")
@click.argument("request_file", metavar="REQUEST", type=click.File("rb"))
@click.argument("other_file", metavar="[OTHER]", type=click.File("rb"), required=False)
@base_url_option
@api_key_option
def explain(request_file: IO[bytes], other_file: IO[bytes] | None, base_url: str, api_key: str) -> None:
    """Why REQUEST, a JSON file with the body of a chat completion, finds no more of itself in a server's cache.

    With OTHER, that one is warmed first: the answer is then about the two of them.
    """
    with asking(base_url, api_key) as client, in_one_sentence(client):
        asked, other = _body(request_file, client), _body(other_file, client)
        if other is not None:
            client.post("/cache/warm", body=other, cast_to=dict[str, Any])
        found = client.post("/cache/explain", body=asked, cast_to=dict[str, Any])
    for line in report(found):
        click.echo(line)


def _body(file: IO[bytes] | None, client: Any) -> Any:
    """The file's JSON object, with the server's own model where it names none."""
    if file is None:
        return None
    try:
        body = json.load(file)
    except ValueError as error:
        raise click.ClickException(f"{Path(file.name).name} is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise click.ClickException(f"{Path(file.name).name} must hold a JSON object, the body of a chat completion.")
    return {"model": first_model(client)} | body


_COLOURS = {"hit": "green", "never_seen": "yellow"}


def report(found: dict[str, Any]) -> list[str]:
    """What the server said, as lines; the shared part green, what differs red."""
    kind, tiers, total = found["class"], found["tiers"], found["prompt_tokens"]
    held = tiers["pool"] + tiers["host"] + tiers["disk"]
    lines = [
        click.style(kind, fg=_COLOURS.get(kind, "red"), bold=True)
        + f"  {total:,} prompt tokens: {tiers['pool']:,} in the pool, {tiers['host']:,} in host memory, "
        f"{tiers['disk']:,} on disk, "
        f"{tiers['elsewhere']:,} on another replica, {total - held - tiers['elsewhere']:,} to compute",
        _bar(held, total),
    ]
    if at := found.get("divergence"):
        indent = " " * len(repr(at["before"])[1:-1])
        lines += [
            f"parts from an earlier prompt at token {at['token']:,}, character {at['offset']:,} of {at['param']}:",
            "  " + click.style(repr(at["before"])[1:-1], fg="green") + click.style(repr(at["now"])[1:-1], fg="red"),
            "  " + indent + click.style(repr(at["then"])[1:-1], fg="yellow") + click.style("  before", dim=True),
        ]
    if lost := found.get("lost"):
        when = "" if lost.get("seconds_ago") is None else f" {lost['seconds_ago']:,.0f} s ago"
        idle = "" if lost.get("after_idle_s") is None else f", after {lost['after_idle_s']:,.0f} s without use"
        lines.append(f"what comes next was stored, and {lost['reason']}{when}{idle}")
    if advice := found.get("advice"):
        lines.append(advice)
    return lines


def _bar(held: int, total: int, width: int = 60) -> str:
    filled = round(width * held / max(1, total))
    return click.style("█" * filled, fg="green") + click.style("░" * (width - filled), fg="red")
