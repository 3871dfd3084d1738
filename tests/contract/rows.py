"""The chat parameters of OpenAI's client, row by row: what is taken, and what is refused and by which name.

Values go into the body as they stand here, past the client's own types. A row that another file of this folder tests in
depth (tools, formats, logprobs) has its refusals here only where they belong to the wire.
"""

from typing import Any

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def said(*messages: Any) -> dict[str, Any]:
    return {"messages": [*messages, *HELLO]}


def part(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def allowed(mode: str, name: str = "f") -> dict[str, Any]:
    named = part("function", function={"name": name})
    return part("allowed_tools", allowed_tools={"mode": mode, "tools": [named]})


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": fields}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


TEXT = part("text", text="hello")
TOOL = part("function", function={"name": "f", "strict": True, "parameters": {"type": "object", "properties": {}}})
NAMED = part("function", function={"name": "f"})
EXPLICIT = {"mode": "explicit"}

TAKEN: dict[str, list[dict[str, Any]]] = {
    "messages": [
        *(said({"role": role, "content": "x"}) for role in ("developer", "system", "user", "assistant")),
        said({"role": "tool", "content": "x", "tool_call_id": "c"}),
        said({"role": "function", "content": "x", "name": "f"}),
    ],
    "content": [
        user(TEXT, TEXT),
        said({"role": "assistant", "content": None}),
        said({"role": "assistant"}),
        said({"role": "system", "content": [TEXT]}, {"role": "developer", "content": [TEXT]}),
        said({"role": "assistant", "content": [TEXT, part("refusal", refusal="no")]}),
        said({"role": "tool", "content": [TEXT], "tool_call_id": "c"}),
    ],
    "prompt_cache_breakpoint": [
        user(TEXT | {"prompt_cache_breakpoint": point})
        for point in (EXPLICIT, EXPLICIT | {"ttl": "30m"}, EXPLICIT | {"ttl": "12h"}, None)
    ],
    "assistant.audio, name, refusal": [
        said({"role": "assistant", "content": "x", "name": "n", "audio": {"id": "a"}, "refusal": None}),
        said({"role": "assistant", "content": None, "refusal": "no"}),
        said({"role": "system", "content": "x", "name": "n"}, {"role": "user", "content": "x", "name": "n"}),
    ],
    "max_completion_tokens, max_tokens": [{"max_completion_tokens": 1}, {"max_tokens": 1},
                                          {"max_tokens": 2, "max_completion_tokens": 2}],
    "temperature, top_p, seed": [{"temperature": 0}, {"temperature": 2}, {"top_p": 0}, {"top_p": 1},
                                 {"seed": -(2**63)}, {"seed": 2**63 - 1}, {"seed": 0}],
    "frequency_penalty, presence_penalty": [{"frequency_penalty": -2}, {"presence_penalty": 2}],
    "logit_bias": [{"logit_bias": {}}, {"logit_bias": {"0": -100, "257": 100}}, {"logit_bias": {"7": 0.5}}],
    "logprobs, top_logprobs": [{"logprobs": False}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 20},
                               {"logprobs": True, "top_logprobs": 0}],
    "n": [{"n": 1}, {"n": 8}],
    "stop": [{"stop": "x"}, {"stop": ["a", "b", "c", "d"]}, {"stop": []}],
    "stream": [{"stream_options": None}],
    "tools, tool_choice": [
        {"tools": []}, {"tool_choice": "none"}, {"tool_choice": "auto"}, {"tools": [TOOL]},
        *({"tools": [TOOL], "tool_choice": choice} for choice in ("none", "auto", NAMED, allowed("auto"))),
    ],
    "functions, function_call": [{"functions": None, "function_call": None}],
    "parallel_tool_calls": [{"parallel_tool_calls": False}, {"parallel_tool_calls": True}],
    "response_format": [
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        *(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n-1_A"} | more}}
            for more in ({}, {"strict": True}, {"strict": None}, {"description": "d", "schema": {"type": "null"}})
        ),
    ],
    "prompt_cache_key": [{"prompt_cache_key": "k"}, {"prompt_cache_key": ""}],
    "prompt_cache_options": [
        {"prompt_cache_options": options}
        for options in ({}, {"mode": "implicit"}, {"mode": "explicit"}, {"mode": "implicit", "ttl": "30m"})
    ],
    "prompt_cache_retention": [{"prompt_cache_retention": "in_memory"}, {"prompt_cache_retention": "24h"}],
    "store, metadata, user, safety_identifier": [
        {"store": True}, {"user": "u"}, {"safety_identifier": "s"}, {"metadata": {}},
        {"metadata": {str(key): "v" * 512 for key in range(16)}},
    ],
    "service_tier": [{"service_tier": tier} for tier in ("auto", "default", "flex", "scale", "priority", "fast")],
    "verbosity, reasoning_effort": [
        *({"verbosity": value} for value in ("low", "medium", "high")),
        *({"reasoning_effort": value} for value in ("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    ],
    "modalities": [{"modalities": ["text"]}, {"modalities": ["text"], "audio": None}],
    "prediction": [{"prediction": part("content", content=content)} for content in ("hello", [TEXT])],
    "web_search_options, moderation": [{"web_search_options": None, "moderation": None}],
    "unknown keys": [
        {"top_k": 2**31 - 1, "min_p": 0.1, "repetition_penalty": 1.0, "cache_salt": "s", "ignore_eos": False},
        {"cache_prompt": True, "id_slot": 1, "nonsense": {"deep": [1, None]}},
    ],
}  # fmt: skip

OPTIONAL = (
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
    "metadata", "modalities", "moderation", "n", "parallel_tool_calls", "prediction", "presence_penalty",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "response_format",
    "safety_identifier", "seed", "service_tier", "stop", "store", "stream_options", "temperature", "tool_choice",
    "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
)  # fmt: skip

REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "messages": [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": ["x"]}, "messages[0]"),
    ],
    "content": [
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (user(), "messages[0].content"),
        (user(part("text")), "messages[0].content[0].text"),
        (user(part("odd")), "messages[0].content[0].type"),
    ],
    "image_url, input_audio, file": [
        (user(TEXT, part("image_url", image_url={"url": "data:,"})), "messages[0].content[1]"),
        (user(part("input_audio", input_audio={"data": "", "format": "wav"})), "messages[0].content[0]"),
        (user(part("file", file={"file_id": "f"})), "messages[0].content[0]"),
    ],
    "prompt_cache_breakpoint": [
        (user(TEXT | {"prompt_cache_breakpoint": EXPLICIT | {field: "odd"}}),
         f"messages[0].content[0].prompt_cache_breakpoint.{field}")
        for field in ("mode", "ttl")
    ],
    "tool_call_id": [
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].name"),
    ],
    "model": [({"model": ""}, "model"), ({"model": 7}, "model"), ({"model": None}, "model")],
    "max_completion_tokens, max_tokens": [
        *(({"max_tokens": value}, "max_tokens") for value in (0, -1, 1.5, "9", True)),
        *(({"max_completion_tokens": value}, "max_completion_tokens") for value in (0, -1, 1.5, "9", True)),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ],
    "temperature, top_p, seed": [
        *(({"temperature": value}, "temperature") for value in (-0.1, 2.1, "1", True)),
        *(({"top_p": value}, "top_p") for value in (-0.1, 1.1, "1")),
        *(({"seed": value}, "seed") for value in (1.5, "7", 2**64, -(2**63) - 1)),
    ],
    "frequency_penalty, presence_penalty": [
        ({name: value}, name) for name in ("frequency_penalty", "presence_penalty") for value in (-2.1, 2.1, "1")
    ],
    "logit_bias": [
        ({"logit_bias": biases}, "logit_bias")
        for biases in ({"258": 1}, {"-1": 1}, {"a": 1}, {"1": 101}, {"1": "1"}, {"01": 1}, [])
    ],
    "logprobs, top_logprobs": [
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
    ],
    "n": [({"n": value}, "n") for value in (0, -1, 129, 1.5, "1", True)],
    "stop": [({"stop": value}, "stop") for value in (["a"] * 5, "", 7, "x" * 1001)] + [({"stop": [""]}, "stop[0]")],
    "stream": [({"stream": "true"}, "stream"), ({"stream": 1}, "stream")],
    "tools, tool_choice": [
        ({"tools": [part("custom", custom={"name": "c"})]}, "tools[0].type"),
        ({"tools": [part("function")]}, "tools[0].function"),
        ({"tools": [part("function", function={"name": "a b"})]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [TOOL], "tool_choice": "odd"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": part("custom", custom={"name": "c"})}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": part("function", function={"name": "g"})}, "tool_choice.function.name"),
        ({"tools": [TOOL], "tool_choice": allowed("auto", "g")}, "tool_choice.allowed_tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
    "functions, function_call": [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        (said({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}),
         "messages[0].function_call"),
    ],
    "response_format": [
        ({"response_format": {"type": "odd"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": "text"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": json_schema(schema={"type": "object"})}, "response_format.json_schema.name"),
        ({"response_format": json_schema(name="n", schema={"type": "odd"})}, "response_format.json_schema.schema"),
    ],
    "prompt_cache_key": [({"prompt_cache_key": 7}, "prompt_cache_key")],
    "prompt_cache_options": [
        ({"prompt_cache_options": {"mode": "odd"}}, "prompt_cache_options.mode"),
        ({"prompt_cache_options": {"ttl": "1h"}}, "prompt_cache_options.ttl"),
    ],
    "prompt_cache_retention": [({"prompt_cache_retention": "odd"}, "prompt_cache_retention")],
    "store, metadata, user, safety_identifier": [
        ({"store": "yes"}, "store"),
        ({"user": 7}, "user"),
        ({"safety_identifier": 7}, "safety_identifier"),
        ({"metadata": {str(key): "v" for key in range(17)}}, "metadata"),
        *(({"metadata": value}, "metadata") for value in ("x", [], {"k" * 65: "v"}, {"k": 7}, {"k": "v" * 513})),
    ],
    "service_tier": [({"service_tier": value}, "service_tier") for value in ("odd", "", 7)],
    "verbosity, reasoning_effort": [({name: "odd"}, name) for name in ("verbosity", "reasoning_effort")],
    "modalities": [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"modalities": ["odd"]}, "modalities[0]"),
        ({"audio": {"voice": "v", "format": "wav"}}, "audio"),
    ],
    "prediction": [
        ({"prediction": {"type": "odd"}}, "prediction.type"),
        ({"prediction": {"type": "content"}}, "prediction.content"),
        ({"prediction": part("content", content=[part("file")])}, "prediction.content[0]"),
    ],
    "web_search_options, moderation": [
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {"model": "m"}}, "moderation"),
    ],
    "unknown keys": [
        *(({"top_k": value}, "top_k") for value in (-2, 2**31, 10**30)),
        ({"min_p": 2}, "min_p"), ({"cache_salt": ""}, "cache_salt"),
    ],
}  # fmt: skip
