"""How an admin's client shows what the server said: tables for people, plain text in a pipe, JSON for scripts."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final, cast

from django.core.management.base import OutputWrapper
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

NOTHING: Final = "-"
FREE_TEXT: Final = ("note", "said", "tags")
_FRACTION: Final = re.compile(r"\.\d+Z$")
_VERY_WIDE: Final = 400
_IN_STEP: Final = 2.0
_AT_LENGTH: Final = 30.0


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where answers go (`out`) and where everything else does (`err`)."""

    out: OutputWrapper
    err: OutputWrapper
    as_json: bool

    def json(self, value: Any) -> None:
        """Print an answer as JSON."""
        self.out.write(json.dumps(value, indent=2))

    def line(self, text: str) -> None:
        """Print one line of an answer."""
        self.out.write(text)

    def hint(self, text: str) -> None:
        """Tell the person something that is no part of the answer."""
        self.err.write(printable(text), str)

    def complain(self, text: str) -> None:
        """Say what went wrong."""
        self.err.write("\n".join(printable(line) for line in text.split("\n")))

    def fields(self, row: Json) -> None:
        """Print one row, a line for each field."""
        width = max(map(len, row), default=0)
        for name, value in row.items():
            self.out.write(f"{name.ljust(width)}  {shown(name, value)}".rstrip())

    def table(self, names: Sequence[str], rows: Sequence[Json]) -> None:
        """Print rows under these headings: framed on a terminal, else in columns of plain text."""
        cells = [[shown(name, row[name]) for name in names] for row in rows]
        if self.out.isatty():
            self._framed(names, cells)
            return
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        for line in [names, *cells]:
            self.out.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def _framed(self, names: Sequence[str], cells: list[list[str]]) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in names:
            table.add_column(name, no_wrap=name not in FREE_TEXT, overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        console = Console(file=cast("IO[str]", self.out))
        # An id or a name that is cut in two cannot be copied: rather a line that is longer than the terminal.
        whole_words = console.measure(table, options=console.options.update(max_width=_VERY_WIDE)).minimum
        console.width = max(console.width, min(whole_words, _VERY_WIDE))
        console.print(table)


@contextmanager
def progress(device_count: int) -> Iterator[tuple[float, Callable[[Json], None]]]:
    """Show how a command comes along, if it went to several devices and somebody watches.

    Gives how often to look, in seconds, and whom to tell what was seen.
    """
    console = Console(stderr=True)
    if device_count < 2 or not console.is_terminal:
        yield _AT_LENGTH, _nobody
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("settled", total=device_count)
        yield _IN_STEP, lambda command: bar.update(task, completed=device_count - open_deliveries(command))


def _nobody(command: Json) -> None:
    """Be told, and show nothing."""


def open_deliveries(command: Json) -> int:
    """Return how many deliveries of a command wait for their result."""
    return int(command["counts"]["pending"]) + int(command["counts"]["received"])


def printable(text: str) -> str:
    """Return text without what could steer a terminal: names and messages are the phones' own."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def shown(name: str, value: Any) -> str:
    """Return a field's value as people read it; times, whose names end in _at, to the second."""
    text = _text(value)
    return printable(_FRACTION.sub("Z", text) if name.endswith("_at") else text) or NOTHING


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={_text(inner)}" for name, inner in value.items())
    return str(value)
