"""The report of a run: one HTML file that holds its pictures and loads nothing. Pure, but for reading the PNG files."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import is_quiet
from benchmarks.studies import STUDIES
from benchmarks.study import Part, Study, Table

LONG_CELL: Final = 40
"""Characters; figures with their quartiles are shorter. A column with a longer cell is one of sentences."""
CODE: Final = re.compile(r"`([^`]+)`")
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --paper: #fff; --line: #d9d9d9; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a8a8a8; --paper: #16181b; --line: #383c42; --band: #1f2329; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 48rem; }
.soft, figcaption, .reads { color: var(--soft); font-size: .92rem; }
.asks { font-style: italic; }
.warning { border-left: 4px solid #d55e00; padding: .3rem .8rem; background: var(--band); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th.text, td.text { white-space: pre-wrap; text-align: left; overflow-wrap: anywhere; min-width: 11rem; }
th { font-weight: 600; background: var(--band); }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .88rem; margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
nav a { margin-right: .9rem; white-space: nowrap; } a { color: #0072b2; }
@media (prefers-color-scheme: dark) { a { color: #56b4e9; } }
code { font-size: .9em; }
@media (max-width: 40rem) {
  body { padding: 1.2rem .9rem 3rem; } th, td { padding: .28rem .4rem; }
  td:first-child { white-space: normal; min-width: 8rem; }
}
@media print { h2 { break-after: avoid; } figure, table { break-inside: avoid; } nav { display: none; } }
"""


def html_report(report: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    """report: of `bench_run.run`, or read from its JSON file. pictures: PNG files by name."""
    servers = report["servers"]
    title = f"anaphora bench: {servers[0]['model']}"
    names = [name for name in STUDIES if name in report["studies"]]
    links = "".join(f'<a href="#{name}">{escape(name)}</a> ' for name in names)
    studies = "".join(_study(STUDIES[name], report["studies"][name], pictures) for name in names)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{_head(report)}<nav>{links}</nav>\n{studies}</body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    of, before, after = report["machine"], report["load"]["before"], report["load"]["after"]
    run = report["run"]
    shown = {
        "when": f"{report['when']}, {report['seconds']:.0f} s",
        "run": f"{run['kind']}, seed {run['seed']}, {run['rounds']} rounds",
        "server": run["server"],
        "set by the environment": ", ".join(f"{name}={value}" for name, value in run["variables"].items()),
        "processor": f"{of['processor']}, {of['physical cores']} cores ({of['logical cores']} logical)"
        + (f", {of['MHz']:,} MHz" if of["MHz"] else ""),
        "memory": f"{of['memory']}, free {before['free memory']} before, {after['free memory']} after",
        "load average": f"{_loads(before)} before, {_loads(after)} after",
        "system": f"{of['system']}, Python {of['Python']}",
        "versions": ", ".join(f"{name} {version}" for name, version in of["versions"].items()),
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in shown.items() if value)
    busy = before["processors busy, percent"]
    warning = (
        ""
        if is_quiet(before)
        else f'<p class="warning">The machine was not quiet when the run began ({busy:.0f}% busy): the ratios within a '
        "row may still hold, the times do not.</p>"
    )
    traits = Table(
        ["server", "model", "cache salts", "says what was cached", "ignores end of turn"],
        [[server["name"], server["model"], *_traits(server["traits"])] for server in report["servers"]],
    )
    return (
        '<p class="soft">Every figure is a median; the quartiles, between which half of the samples lie, stand behind '
        "it in brackets and are drawn as whiskers or bands. Each request has a connection of its own.</p>"
        f"{warning}<dl>{rows}</dl>{_table(traits)}\n"
    )


def _loads(looked: Mapping[str, Any]) -> str:
    return " ".join(f"{value:.2f}" for value in looked["load average"])


def _traits(traits: Mapping[str, bool]) -> list[str]:
    return ["yes" if traits[name] else "no" for name in ("takes_salt", "says_cached", "ignores_eos")]


def _study(study: Study, outcome: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    head = f'<h2 id="{study.name}">{escape(study.title)}</h2>\n<p class="asks">{escape(study.asks)}</p>\n'
    if "not_measured" in outcome:
        return head + f'<p class="soft">Not measured: {escape(outcome["not_measured"])}.</p>\n'
    if "failed" in outcome:
        return head + f'<p class="warning">Failed: {escape(outcome["failed"])}</p>\n'
    parts = "".join(_part(part, pictures) for part in study.present(outcome["results"]))
    return f'{head}{parts}<p class="reads">{_prose(study.reads)} ({outcome["seconds"]:.0f} s)</p>\n'


def _part(part: Part, pictures: Mapping[str, Path]) -> str:
    if isinstance(part, str):
        return f"<p>{_prose(part)}</p>\n"
    if isinstance(part, Table):
        return _table(part)
    data = base64.b64encode(pictures[part.name].read_bytes()).decode()
    caption = escape(part.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>\n'
    )


def _prose(text: str) -> str:
    """Escaped; what stands between backticks is code."""
    return CODE.sub(r"<code>\1</code>", escape(text))


def _table(table: Table) -> str:
    """Figures stand to the right and in one line; sentences, and what is of the same column, to the left."""
    kinds = ["text" if max(map(len, column)) > LONG_CELL else "" for column in zip(*table.rows, strict=True)]
    head = _row("th", table.headers, kinds or [""] * len(table.headers))
    rows = "".join(_row("td", row, kinds) for row in table.rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>\n'


def _row(tag: str, cells: Sequence[str], kinds: Sequence[str]) -> str:
    made = (
        f'<{tag} class="{kind}">{escape(cell)}</{tag}>' if kind else f"<{tag}>{escape(cell)}</{tag}>"
        for cell, kind in zip(cells, kinds, strict=True)
    )
    return f"<tr>{''.join(made)}</tr>"
