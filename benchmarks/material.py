"""What the use cases send: three products, a file of code, an agent's tools. Texts only, no lengths."""

from typing import Any, Final

PRODUCTS: Final = {
    "support": "You answer customers of a shop for bicycles. You never promise a date of delivery. The catalogue: ",
    "law": "You summarise contracts for people who are no lawyers. You quote clauses by number. The contract: ",
    "travel": "You plan journeys by train. You name the stations where one changes. The timetable: ",
}

FUNCTION: Final = '''
def {name}_{number}(rows: list[dict[str, int]], limit: int) -> list[dict[str, int]]:
    """Rows whose {name} is below the limit, the smallest first."""
    found = [row for row in rows if row["{name}"] < limit]
    found.sort(key=lambda row: (row["{name}"], row["id"]))
    return found
'''
FIELDS: Final = ("weight", "price", "age", "distance", "volume", "score", "count", "rank")

TASK: Final = "Find the cheapest train to Lyon on Friday that arrives before noon, and reserve two seats."
AGENT_RULES: Final = "You are an agent. You call one tool at a time, and you answer when you know enough. "
STEPS: Final = ("search_trains", "get_fares", "check_seats", "reserve")


def code_file(num_functions: int) -> str:
    """A file in Python, the same for the same number."""
    return "".join(FUNCTION.format(name=FIELDS[number % len(FIELDS)], number=number) for number in range(num_functions))


def tools() -> list[dict[str, Any]]:
    """Of the agent, as a request has them."""
    date = {"type": "string", "description": "As YYYY-MM-DD."}
    return [
        _tool("search_trains", "Trains between two stations on a day.", {"start": {}, "goal": {}, "date": date}),
        _tool("get_fares", "Fares of a train, by class.", {"train": {}}),
        _tool("check_seats", "Free seats of a train.", {"train": {}, "number": {"type": "integer"}}),
        _tool("reserve", "Reserve seats. Cannot be undone.", {"train": {}, "number": {"type": "integer"}}),
    ]


def _tool(name: str, description: str, properties: dict[str, dict[str, str]]) -> dict[str, Any]:
    typed = {key: {"type": "string"} | value for key, value in properties.items()}
    parameters = {"type": "object", "properties": typed, "required": sorted(typed)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def call(step: int) -> tuple[dict[str, Any], str]:
    """(the assistant's message with a call, the id of that call): what an agent's loop sends back at this step."""
    identifier = f"call_{step}"
    function = {"name": STEPS[step % len(STEPS)], "arguments": f'{{"train": "TGV {6600 + step}"}}'}
    calls = [{"id": identifier, "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}, identifier
