"""Does a chat template write each message by itself? Read off its source, so that it is certain. Pure.

    {{ before }}{% for message in messages %} ... {% endfor %}{% if add_generation_prompt %} ... {% endif %}

Where the loop looks at its own message, at the first one, and at nothing else that a conversation changes, the text of
a message is the same whatever stands between: the next turn needs the first message and the new ones, however many
there are. A template that looks further (at neighbours, at the last question) or is not understood is run over all.
"""

from collections.abc import Iterator
from typing import Final

from jinja2 import nodes

_HARMLESS: Final = (
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.For,
    nodes.Const,
    nodes.Name,
    nodes.Getitem,
    nodes.Getattr,
    nodes.List,
    nodes.Tuple,
    nodes.Add,
    nodes.Concat,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.CondExpr,
    nodes.Test,
    nodes.Filter,
    nodes.Keyword,
    nodes.Call,
)
"""What has no memory from one message to the next. Not `set`, `namespace`, `break`, macros and blocks."""

_FILTERS: Final = frozenset(("string", "tojson", "trim"))
_FUNCTIONS: Final = frozenset(("raise_exception",))
_METHODS: Final = frozenset(("lstrip", "rstrip", "strip"))
_RESERVED: Final = frozenset(("add_generation_prompt", "loop", "messages"))


def writes_each_alone(template: nodes.Template) -> bool:
    """False wherever there is doubt."""
    body = template.body
    loops = [at for at, node in enumerate(body) if isinstance(node, nodes.For) and _is(node.iter, "messages")]
    if len(loops) != 1:
        return False
    loop, after = body[loops[0]], body[loops[0] + 1 :]
    assert isinstance(loop, nodes.For)
    if loop.recursive or loop.test is not None or loop.else_ or not all(map(_opens_reply, after)):
        return False
    accounted_for = {id(loop.iter), *(id(node.test) for node in after if isinstance(node, nodes.If))}
    return all(_is_harmless(node, accounted_for) for top in body for node in _walk(top))


def _opens_reply(node: nodes.Node) -> bool:
    """It writes nothing unless a reply is to begin."""
    return isinstance(node, nodes.If) and _is(node.test, "add_generation_prompt") and not node.elif_ and not node.else_


def _is_harmless(node: nodes.Node, accounted_for: set[int]) -> bool:
    """A reserved name is harmless in the few places that note it in `accounted_for`, which a parent does first."""
    match node:
        case nodes.Name():
            return node.name not in _RESERVED or id(node) in accounted_for
        case nodes.Getattr(node=nodes.Name(name="loop"), attr="first"):
            accounted_for.add(id(node.node))
        case nodes.Getitem(node=nodes.Name(name="messages"), arg=nodes.Const(value=0)):
            accounted_for.add(id(node.node))
        case nodes.Filter():
            return node.name in _FILTERS
        case nodes.Call():
            called = node.node
            return (isinstance(called, nodes.Name) and called.name in _FUNCTIONS) or (
                isinstance(called, nodes.Getattr) and called.attr in _METHODS
            )
    return isinstance(node, _HARMLESS)


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    """Parents before their children."""
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def _is(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name
