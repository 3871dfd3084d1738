"""What is done with each block of commands in README.md and docs/. One that is not here fails a test."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Entry:
    """How a block is tried.

    run: with a server whose model is a fake, and answers like any other. model: with the default model, as `serve`
    serves it: that block is the server. parse: it cannot run here, for `reason`; then its commands, options, values,
    targets and files must be right. stdin: what is typed.
    """

    how: Literal["run", "model", "serve", "parse"]
    reason: str = ""
    stdin: str = ""


_ONCE = "it is a whole server, and one is started already"
_LONG = "it takes minutes"

TABLE = {
    "README.md: make serve": Entry("serve"),
    "README.md: curl http://127.0.0.1:8000/v1/chat/compl": Entry("model"),
    "README.md: .venv/bin/python examples/ten_turns.py": Entry("run"),
    "docs/bench.md: anaphora bench --quick": Entry("parse", _LONG),
    "docs/bench.md: anaphora bench --quick --study peers --p": Entry("parse", "llama.cpp's server is built apart"),
    "docs/chat.md: anaphora chat --system 'Answer in one se": Entry("run", stdin="How long?\nAnd a film?\n"),
    "docs/chat.md: printf 'Name a river.\\nAnd a mountain.\\n": Entry("run"),
    "docs/doctor.md: anaphora doctor": Entry("parse", "the quickstart's is the same, and runs"),
    "docs/quickstart.md: make serve": Entry("parse", "README's is the same, and runs"),
    'docs/quickstart.md: make serve ARGS="--port 9000 --disk-size': Entry("parse", _ONCE),
    "docs/quickstart.md: docker compose up": Entry("parse", "there may be no Docker engine"),
    "docs/quickstart.md: source .venv/bin/activate": Entry("run"),
    "docs/quickstart.md: anaphora doctor": Entry("model"),
    "docs/quickstart.md: curl -N http://127.0.0.1:8000/v1/chat/co": Entry("model"),
    "docs/quickstart.md: from openai import OpenAI": Entry("model"),
    "docs/quickstart.md: anaphora chat --system 'Answer in one se": Entry("run", stdin="Hi\n/quit\n"),
    'docs/quickstart.md: printf \'{"messages": [{"role": "system",': Entry("run"),
    "docs/quickstart.md: anaphora serve --model HuggingFaceTB/Smo": Entry("parse", "it downloads"),
    "docs/quickstart.md: ANAPHORA_API_KEYS='alice=sk-alice,bob=sk": Entry("parse", _ONCE),
    "docs/quickstart.md: make test": Entry("parse", _LONG),
}
