"""The loop of `anaphora chat`: lines in, replies and commands out.

Replies go to standard output, all else to standard error, so that `anaphora chat < questions > replies` leaves nothing
but replies. A line that begins with a slash is a command; `\"\"\"` begins a text of several lines and ends it, which is
never a command.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from proxy.asking import in_one_sentence
from proxy.explain_command import report
from proxy.terminal.branches import Branches
from proxy.terminal.talking import talk

if TYPE_CHECKING:
    from openai import OpenAI

QUOTES = '"""'
HELP = (
    ("/fork [N]", "a new branch that goes on after turn N, or after the last"),
    ("/branches, /switch B", "list them; go to one"),
    ("/edit N TEXT", "ask turn N otherwise, in a new branch"),
    ("/regenerate", "have the last reply said again"),
    ("/explain [TEXT]", "why the last request, or one that would say TEXT, finds no more in the cache"),
    ("/save FILE", "this branch, for --load and `anaphora explain`"),
    ("/help, /quit", "this; the end (also Ctrl-D). Ctrl-C stops a reply and keeps what was said"),
)


class Chat:
    """options: of every request: the model, and how to sample. The client is closed by who made it."""

    def __init__(self, client: "OpenAI", branches: Branches, options: dict[str, Any]) -> None:
        self._client = client
        self._branches = branches
        self._options = options
        self._is_interactive = sys.stdin.isatty()
        self._is_amid = False
        self._out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        self._notes = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
        self._commands: dict[str, Callable[[str], None]] = {
            "/fork": self._fork,
            "/branches": lambda _: self._note(*self._branches.listed()),
            "/switch": self._switch,
            "/edit": self._edit,
            "/regenerate": self._regenerate,
            "/explain": self._explain,
            "/save": self._save,
            "/help": lambda _: self._note(*(f"{name:<22} {meaning}" for name, meaning in HELP)),
        }

    def run(self) -> None:
        """Until the end of input, or `/quit`. Raises ClickException for what fails where nobody can try again."""
        if self._is_interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` its editing and history
            self._note(f"{self._options['model']}; /help lists the commands.")
        while (read := self._read()) is not None and read != ("/quit", False):
            try:
                self._take(*read)
            except click.ClickException as error:
                if not self._is_interactive:
                    raise
                self._notes.print(error.message, style="red")

    def _read(self) -> tuple[str, bool] | None:
        """The next line, or text of several; was it between quotes? None at the end of input."""
        try:
            line = self._input(f"{self._branches.num_turns + 1}> ")
            if not line.startswith(QUOTES):
                return line.strip(), False
            lines = [line.removeprefix(QUOTES)]
            while not lines[-1].rstrip().endswith(QUOTES):
                lines.append(self._input(". "))
            return "\n".join(lines).rstrip().removesuffix(QUOTES).strip(), True
        except EOFError:
            if self._is_interactive:
                self._note("")  # or the shell's prompt would stand behind ours
            return None
        except KeyboardInterrupt:
            self._note("", "Ctrl-D or /quit ends it.")
            return "", False

    def _input(self, prompt: str) -> str:
        return input(prompt if self._is_interactive else "")

    def _take(self, line: str, is_quoted: bool) -> None:
        """One line: a command, or something to say. Nothing stays of a question that got no answer."""
        name, _, rest = line.partition(" ")
        if name in self._commands and not is_quoted:
            try:
                self._commands[name](rest.strip())
            except ValueError as error:
                raise click.ClickException(str(error)) from None
        elif line.startswith("/") and not is_quoted:
            raise click.ClickException(f'There is no command {name}; /help lists them, """ before and after says it.')
        elif line:
            self._branches.messages.append({"role": "user", "content": line})
            self._answer(self._branches.messages.pop)

    def _answer(self, undo: Callable[[], object]) -> None:
        """Have the last question answered. undo: what to do where the server gives no answer."""
        body = self._options | {"messages": list(self._branches.messages)}
        self._is_amid = False
        try:
            with in_one_sentence(self._client):
                reply = talk(self._client, body, self._show)
        except click.ClickException:
            undo()
            if self._is_amid:
                self._out.print()
            raise
        if reply.was_stopped and not reply.text:
            undo()
        else:
            self._branches.messages.append({"role": "assistant", "content": reply.text})
        self._out.print()
        self._notes.print(reply.figures(), style="dim")

    def _show(self, piece: str, is_thought: bool) -> None:
        self._is_amid = True
        if is_thought:
            self._notes.print(piece, end="", style="dim italic")
        else:
            self._out.print(piece, end="")
            self._out.file.flush()

    def _note(self, *lines: str) -> None:
        for line in lines:
            self._notes.print(line)

    # -- commands: what follows the name --

    def _fork(self, rest: str) -> None:
        number = self._branches.fork(_number(rest, "/fork [N]") if rest else None)
        self._note(f"branch {number}, {self._branches.num_turns} turns")

    def _switch(self, rest: str) -> None:
        self._branches.switch(_number(rest, "/switch B"))
        self._note(f"branch {self._branches.current}, {self._branches.num_turns} turns")

    def _edit(self, rest: str) -> None:
        digits, _, text = rest.partition(" ")
        was, turn = self._branches.current, _number(digits, "/edit N TEXT")
        if not text.strip():
            raise ValueError("Say what to ask in its place: /edit N TEXT.")
        self._note(f"branch {self._branches.edit(turn, text.strip())}")
        self._answer(lambda: self._branches.abandon(was))

    def _regenerate(self, _: str) -> None:
        removed = self._branches.take_back()
        self._answer(lambda: self._branches.messages.extend(removed))

    def _explain(self, rest: str) -> None:
        asked = {"role": "user", "content": rest}
        messages = [*self._branches.messages, asked] if rest else self._branches.request()
        body = {"model": self._options["model"], "messages": messages}
        from openai import APIStatusError

        with in_one_sentence(self._client):
            try:
                found = self._client.post("/cache/explain", body=body, cast_to=dict[str, Any])
            except APIStatusError as error:
                if error.status_code not in (404, 405, 501):
                    raise
                self._note("This server does not explain its cache: it has no /v1/cache/explain.")
                return
        for line in report(found):
            click.echo(line, err=True)

    def _save(self, rest: str) -> None:
        if not rest:
            raise ValueError("Say where to: /save FILE.")
        body = self._options | {"messages": self._branches.messages}
        try:
            Path(rest).expanduser().write_text(json.dumps(body, ensure_ascii=False, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise ValueError(f"{rest}: {error.strerror}.") from None
        self._note(f"saved {len(self._branches.messages)} messages to {rest}")


def _number(text: str, usage: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"A number is wanted: {usage}.")
    return int(text)
