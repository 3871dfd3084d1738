"""docs/operations.md and the dashboard know every metric, and no other; their expressions parse."""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser as promql
import pytest
import yaml

from proxy.metrics import Metrics
from sessions.reports import Stats
from tests.docs.blocks import ROOT, blocks

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana" / "anaphora.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
[RULES] = [yaml.safe_load(block.text) for block in blocks() if block.language == "yaml" and "alert:" in block.text]
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
PROMETHEUS_OWN = {"up"}


def series() -> dict[str, str]:
    """Every series of `/metrics` by name, and the metric that it is of."""
    found: dict[str, str] = {}
    for family in Metrics(Stats).registry.collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        exposed = family.name + ("_total" if family.type == "counter" else "")
        found |= {family.name + ending: exposed for ending in endings}
    return found


def selected(expression: str) -> set[str]:
    """Names of the series that it reads; raises ValueError if it is no PromQL."""
    return set(_selectors(promql.parse(expression.replace("$__rate_interval", "5m"))))


def _selectors(node: Any) -> Iterator[str]:
    if isinstance(node, promql.VectorSelector):
        yield node.name
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        if (child := getattr(node, name, None)) is not None:
            yield from _selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from _selectors(child)


@pytest.mark.parametrize("expression", EXPRESSIONS + [rule["expr"] for rule in ALERTS])
def test_every_expression_reads_series_that_there_are(expression: str) -> None:
    names = selected(expression)
    assert names and names <= series().keys() | PROMETHEUS_OWN


def test_the_parser_sees_what_is_wrong() -> None:
    assert selected("sum(rate(a_total[5m])) / max(b) and c > 0.5 * d") == {"a_total", "b", "c", "d"}
    with pytest.raises(ValueError, match="bracket"):
        selected("rate(a_total[5m")


def test_the_dashboard_shows_every_metric() -> None:
    names = series()
    shown = {names[name] for expression in EXPRESSIONS for name in selected(expression)}
    assert shown == set(names.values())


def test_the_table_has_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| (`anaphora_[^|]*)\|", PAGE, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(anaphora_\w+)`", row)} == set(series().values())


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) and DASHBOARD["uid"] and DASHBOARD["schemaVersion"] >= 36
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


def test_rules_are_as_prometheus_wants_them() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 8
    for rule in ALERTS:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"} and rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m")) and rule["labels"]["severity"] in ("page", "ticket")
