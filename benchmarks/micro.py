"""Micro benchmarks, one subcommand each: `python -m benchmarks.micro --help`. See README.md beside this file."""

import logging

import click
import structlog

from benchmarks.attention import attention
from benchmarks.draws import draws
from benchmarks.grammar import grammar
from benchmarks.linears import linears
from benchmarks.scores import scores
from benchmarks.step import step
from benchmarks.text import text
from benchmarks.trie import trie


@click.group(context_settings={"max_content_width": 120})
def main() -> None:
    """Parts of the server measured alone. Each prints medians and ratios to a reference of the same run."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


for _command in (linears, attention, step, draws, scores, text, trie, grammar):
    main.add_command(_command)

if __name__ == "__main__":
    main()
