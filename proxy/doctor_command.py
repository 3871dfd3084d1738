"""`anaphora doctor`: looks at everything that `anaphora serve` would use, with the same settings. Prints.

✓ fine    ! works, with less than it could    ✗ would not start, or not do its job; then the exit code is 1
"""

import http.client
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from proxy.listening import bind, bind_refusal
from proxy.options import load_settings, settings_options
from proxy.settings import Settings
from sessions.doctor.finding import Finding, failure, fine, warning

_SIGNS = {
    "fine": click.style("✓", fg="green"),
    "warning": click.style("!", fg="yellow", bold=True),
    "failure": click.style("✗", fg="red", bold=True),
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ANSWER_TIMEOUT_S = 2.0


def _doctor(as_json: bool, **given: str | None) -> None:
    settings = load_settings(given)
    from proxy import logs

    logs.configure("error", settings.log_format)  # what would be logged is found, and printed, here
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            click.echo(line(finding))
    if as_json:
        click.echo(report(findings))
    sys.exit(any(finding.verdict == "failure" for finding in findings))


doctor = click.Command(
    "doctor",
    params=[
        click.Option(["--json", "as_json"], is_flag=True, help="One JSON object in place of lines."),
        *settings_options(),
    ],
    callback=_doctor,
    short_help="Check model, template, tokenizer, Redis, kernels, memory, disk, clock and port.",
    help="Look at all that `anaphora serve` would use with the same settings, and say what to do about it. "
    "The exit code is 1 if something would not work.",
)


def examine(settings: Settings) -> Iterator[Finding]:
    yield port(settings)
    yield access(settings)
    from proxy.server import service_options
    from sessions.doctor import examination

    try:
        options = service_options(settings)
    except (OSError, ValueError) as error:
        yield failure("shared prompts", str(error), "mend the file, or leave it out of --shared-prompts.")
        return
    yield from examination.examine(options)


def port(settings: Settings) -> Finding:
    """Free, or whose?"""
    address = f"{settings.host}:{settings.port}"
    try:
        bind(settings.host, settings.port).close()
    except (OSError, UnicodeError) as error:
        if _is_anaphora(settings):
            return warning("port", f"{address}: an Anaphora runs there", "choose another --port for a second one.")
        refusal = bind_refusal(settings, error).message
        return failure("port", refusal.rstrip("."), "choose another --port or --host.")
    return fine("port", f"{address} is free")


def _is_anaphora(settings: Settings) -> bool:
    """Does what listens there say what `/ready` says?"""
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=_ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        ready = json.load(connection.getresponse())
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    return isinstance(ready, dict) and "engine_alive" in ready


def access(settings: Settings) -> Finding:
    """Who may call."""
    tenants = {tenant for tenant, _ in settings.key_pairs()}
    if tenants:
        return fine("access", f"API keys of {len(tenants)} tenants" if len(tenants) > 1 else "API keys of one tenant")
    if settings.host in _LOOPBACK:
        return fine("access", "no API keys, and only this machine can connect")
    return warning(
        "access",
        f"no API keys, and {settings.host} can be reached by others",
        "set ANAPHORA_API_KEYS or --api-keys-file.",
    )


def line(finding: Finding) -> str:
    shown = f"{_SIGNS[finding.verdict]} {finding.check:<18} {finding.figure}"
    return f"{shown}\n  {'':<18} {click.style('→', dim=True)} {finding.advice}" if finding.advice else shown


def report(findings: list[Finding]) -> str:
    checks: list[dict[str, Any]] = [asdict(finding) for finding in findings]
    is_well = all(finding.verdict != "failure" for finding in findings)
    return json.dumps({"ok": is_well, "checks": checks}, ensure_ascii=False, indent=2)
