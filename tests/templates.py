"""Chat templates after public ones, with what makes them hard; control tokens are those of `fakes.byte_tokenizer`."""

GEMMA = """{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif -%}
{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"""
"""Gemma 2: no system message, no tools, roles that alternate."""

MISTRAL = """{%- if messages[0]["role"] == "system" %}{% set system_message = messages[0]["content"] %}
{%- set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}{% set ns.index = 0 %}
{%- for message in loop_messages %}
  {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) -%}
      {{- raise_exception("After the optional system message, conversation roles must alternate") }}{% endif %}
    {%- set ns.index = ns.index + 1 %}
  {%- endif %}
{%- endfor %}
{%- for message in loop_messages %}
  {%- if message["role"] == "user" %}
    {%- if tools and message == user_messages[-1] %}
      {{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}
    {%- endif %}
    {%- if loop.last and system_message is defined %}
      {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
    {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{% endif %}
  {%- elif message.tool_calls is defined and message.tool_calls is not none %}
    {{- "[TOOL_CALLS] [" }}
    {%- for tool_call in message.tool_calls %}
      {%- set out = tool_call.function | tojson %}{{- out[:-1] }}
      {%- if tool_call.id | length != 9 %}{{- raise_exception("Tool call IDs should be of length 9!") }}{% endif %}
      {{- ', "id": "' + tool_call.id + '"}' }}
      {%- if not loop.last %}{{- ", " }}{% else %}{{- "]<|im_end|>" }}{% endif %}
    {%- endfor %}
  {%- elif message["role"] == "assistant" %}{{- " " + message["content"] | trim + "<|im_end|>" }}
  {%- elif message["role"] == "tool" %}
    {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' }}
    {{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
  {%- else %}{{- raise_exception("Only user and assistant roles are supported") }}{% endif %}
{%- endfor %}"""
"""Mistral 7B v0.3: tools and the system message before the last user message; what is no call alternates with users."""
