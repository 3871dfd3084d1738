"""Attributes of a template's `loop`, read without the sandbox's questions about each: most of what a template costs.

The sandbox asks of every attribute whether its name, its owner's type or its value could lead out: of `loop.first`,
once a message, always with the same answer. What is not one of jinja's loop variables goes through the sandbox as ever.
"""

from typing import Any, Final

from jinja2 import Environment
from jinja2.runtime import LoopContext

_VARIABLES: Final = frozenset(
    ("depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0")
)
"""Numbers, truths and items of the sequence. Source: jinja's documentation of `for`."""


def read_loops_at_once(environment: Environment) -> None:
    """Changes the environment: these variables are handed out as they are."""
    sandboxed = environment.getattr

    def read(owner: Any, name: str) -> Any:
        if type(owner) is LoopContext and name in _VARIABLES:
            return getattr(owner, name)
        return sandboxed(owner, name)

    environment.getattr = read  # type: ignore[assignment, method-assign]
