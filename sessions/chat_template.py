"""The model's chat template, compiled once: transformers' sandbox around its source, and what that tells of itself.

No tokenizer is looked at but for its special tokens' names and its template.
"""

import datetime
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

import jinja2
import jinja2.meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _cached_compile_jinja_template

from sessions.control_tokens import ControlTokens
from sessions.dialect import measure
from sessions.errors import ModelRefused
from sessions.prompt import ChatTemplate, TemplateError
from sessions.template_loops import read_loops_at_once
from sessions.template_shape import writes_each_alone

TEMPLATE_DATE: Final = datetime.datetime(2024, 7, 26)
"""What "now" is inside a template: the day Llama 3's own template falls back to. A real date would rewrite
every prompt, and so lose every cached prefix, at midnight (`docs/rendering.md`)."""

DEFAULT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, for a model that brings no template (a base model): plain, append-stable, and widely trained on."""

_compile_jinja: Callable[[str], jinja2.Template] = _cached_compile_jinja_template
"""What `apply_chat_template` compiles with; despite its name it caches nothing. Private, so one more reason
to pin transformers exactly: there is no public way to give a template its own `strftime_now`."""
_TEMPLATE_ERRORS: Final = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


def chat_template(hf: PreTrainedTokenizerBase, control_tokens: ControlTokens, today: datetime.datetime) -> ChatTemplate:
    """Compiled for this tokenizer alone: it holds `today`. Raises ModelRefused."""
    source: str = hf.get_chat_template() if hf.chat_template else DEFAULT_TEMPLATE
    try:
        compiled = _compile_jinja(source)
    except jinja2.TemplateError as error:
        raise ModelRefused(f"The model's chat template does not compile: {error}") from error
    compiled.globals["strftime_now"] = today.strftime
    read_loops_at_once(compiled.environment)

    def apply(
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        **options: Any,
    ) -> str:
        variables = {
            **options,
            **hf.special_tokens_map,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return compiled.render(variables)
        except _TEMPLATE_ERRORS as error:
            raise TemplateError(str(error)) from error

    reserved = {*hf.special_tokens_map, "messages", "tools", "documents", "add_generation_prompt", "strftime_now"}
    parsed = compiled.environment.parse(source)
    variables = jinja2.meta.find_undeclared_variables(parsed) - reserved
    dialect = measure(apply, source, frozenset(control_tokens.by_text))
    digest = sha256(f"{today.isoformat()}\n{source}".encode()).hexdigest()
    return ChatTemplate(
        apply,
        control_tokens,
        digest=digest,
        dialect=dialect,
        options=frozenset(variables - compiled.globals.keys()),
        writes_each_alone=writes_each_alone(parsed) and not (dialect.anchors or dialect.alternates),
    )
