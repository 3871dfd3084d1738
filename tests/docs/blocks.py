"""Code blocks of README.md and docs/: found, named, and taken apart into commands. Reads files, runs nothing."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS = ("make", "curl", "anaphora", "python", ".venv/bin/", "docker", "pip", "npm", "source", "sed", "printf")
"""What a line begins with that somebody is to type."""
SHELLS = ("bash", "sh", "shell", "console")
DATA = ("json", "yaml", "promql", "")
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}[^\n]*\n)+", re.MULTILINE)
_ASSIGNMENT = re.compile(r"([A-Z_]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of a page. language: of its fence; `bash` where indented lines are commands."""

    page: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """The page, and how the first line begins: what a table can say."""
        first = re.sub(r"\s+#.*", "", self.text.strip().splitlines()[0])
        return f"{self.page}: {first.removeprefix('$ ')[:40].strip()}"

    @property
    def script(self) -> str:
        """What is to be typed; of a console, the lines after `$`."""
        if self.language != "console":
            return self.text
        return "".join(line.removeprefix("$ ") for line in self.text.splitlines(True) if line.startswith("$ "))

    def commands(self) -> list[list[str]]:
        """Words of each command, variables before it left out, comments too."""
        joined = self.script.replace("\\\n", " ")
        return [words for words in map(_words, _statements(joined)) if words]

    def variables(self) -> list[str]:
        return re.findall(r"\b(ANAPHORA_[A-Z_]+)=", self.script)


def blocks() -> list[Block]:
    return [block for page in PAGES for block in _blocks(page)]


def _blocks(page: Path) -> Iterator[Block]:
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    for match in _FENCE.finditer(text):
        yield Block(name, match[1], match[2])
    for match in _INDENTED.finditer(_FENCE.sub("", text)):
        stripped = re.sub(r"^ {4}", "", match[0], flags=re.MULTILINE)
        if is_typed(stripped):
            yield Block(name, "bash", stripped)


def inline(page: Path) -> list[str]:
    """What stands between backticks in the text of a page."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text(encoding="utf-8")))


def is_typed(text: str) -> bool:
    """Is one of the lines a command?"""
    return any(line.strip().removeprefix("$ ").startswith(COMMANDS) for line in text.splitlines())


def _statements(script: str) -> Iterator[str]:
    """Lines, but for those inside quotes."""
    pending = ""
    for line in script.splitlines():
        pending += line
        try:
            shlex.split(pending, comments=True)
        except ValueError:
            pending += "\n"
            continue
        yield pending
        pending = ""
    assert not pending, f"a quote is not closed: {pending}"


def _words(statement: str) -> list[str]:
    """Of the last command of a pipe, if there is one."""
    words = shlex.split(statement, comments=True)
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    if "|" in words:
        words = words[words.index("|") + 1 :]
    return words[: words.index(">")] if ">" in words else words
