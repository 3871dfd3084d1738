"""Loop variables read past the sandbox are what they are inside it, and nothing else gets out."""

from typing import Any

import pytest
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sessions.template_loops import _VARIABLES, read_loops_at_once


def rendered(source: str, *, at_once: bool, **variables: Any) -> str:
    environment = ImmutableSandboxedEnvironment()
    if at_once:
        read_loops_at_once(environment)
    return environment.from_string(source).render(variables)


@pytest.mark.parametrize("name", sorted(_VARIABLES))
def test_each_loop_variable_is_what_the_sandbox_says(name: str) -> None:
    source = "{% for item in items %}{{ loop." + name + " }};{% endfor %}"
    items = [{"role": "user"}, {"role": "assistant"}, {"role": "user"}]
    expected = rendered(source, at_once=False, items=items)
    assert rendered(source, at_once=True, items=items) == expected != ""


@pytest.mark.parametrize(
    "source",
    [
        "{% for item in items %}{{ loop.__class__.__mro__ }}{% endfor %}",
        "{% for item in items %}{{ loop._iterable }}{% endfor %}",
        "{{ items.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ items.append(1) }}",
        "{{ '{0.__class__}'.format(items) }}",
    ],
)
def test_what_the_sandbox_holds_back_stays_there(source: str) -> None:
    def outcome(*, at_once: bool) -> str:
        try:
            return rendered(source, at_once=at_once, items=[1])
        except SecurityError as error:
            return f"refused: {error}"

    assert outcome(at_once=True) == outcome(at_once=False)
    assert "class" not in outcome(at_once=True) or outcome(at_once=True).startswith("refused")


def test_a_client_s_own_field_of_such_a_name_is_read_as_ever() -> None:
    assert rendered("{{ item.first }}", at_once=True, item={"first": "mine"}) == "mine"
