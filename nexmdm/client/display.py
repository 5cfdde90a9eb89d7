"""The output of the client: tables and text for people; JSON, YAML and CSV for scripts."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import IO, Any, Final, Literal, NoReturn

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nexmdm.client import formats
from nexmdm.client.rows import Columns

Json = dict[str, Any]
Format = Literal["table", "wide", "json", "csv", "yaml"]
PEOPLE: Final = ("table", "wide")
"""The formats that are for people and not for scripts."""

NOTHING: Final = "-"
FREE_TEXT: Final = ("note", "reason", "detail", "tags", "path", "label", "target")
"""The columns whose text may be wrapped. An id or a name is never wrapped, so that an admin can copy it."""

NARROWEST_FREE_TEXT: Final = 20
WIDEST_WORD: Final = 37
"""Words up to this length are never cut in a wrapped column. An id with a comma has 37 characters."""

_GAP: Final = 2
_COLOURED: Final = ("state", "outcome", "presence", "push", "status", "code")
_COLOURS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("succeeded", "online", "ok", "200"), "green"),
    **dict.fromkeys(("pending", "received", "open", "offline", "partial", "failing"), "yellow"),
    **dict.fromkeys(("failed", "expired", "dead", "revoked"), "red"),
    **dict.fromkeys(("cancelled", "completed", "exhausted", "never", "none", "retired", NOTHING), "dim"),
}
"""The style of each value in a coloured column. An HTTP status or a code without an entry is red."""

_FRACTION: Final = re.compile(r"\.\d+Z$")
_SHOWN_WHILE_WAITING: Final = ("received", "succeeded", "failed", "expired", "cancelled")
_IN_STEP: Final = 2.0
_AT_LENGTH: Final = 30.0
_TOP_LEFT: Final = "\x1b[H\x1b[J"
"""The escape codes that clear the screen of a terminal."""


class _Output(Console):
    """A console that raises BrokenPipeError. The console of rich would end the program instead."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise BrokenPipeError."""
        raise BrokenPipeError


class Terminal:
    """The output of one call of the client.

    Answers go to `out`, and all other messages to `err`. `form` is the format of answers.
    """

    def __init__(self, out: IO[str], err: IO[str], form: Format = "table") -> None:
        self.out = out
        self.err = err
        self.form = form
        self._clears = False

    @property
    def is_structured(self) -> bool:
        """Whether answers are JSON or YAML, with the field names of the API."""
        return self.form in ("json", "yaml")

    def clear(self) -> None:
        """Clear the screen before the next answer, if `out` is a terminal."""
        self._clears = self.out.isatty()

    def value(self, value: Any) -> None:
        """Print a value of the API as YAML if the format is YAML, and as JSON for all other formats."""
        self.line(formats.to_yaml(value) if self.form == "yaml" else formats.to_json(value))

    def line(self, text: str) -> None:
        """Print one line of an answer."""
        self._before_output()
        self.out.write(text + "\n")

    def styled(self, text: Text) -> None:
        """Print one line of an answer. It is coloured if `out` is a terminal."""
        if not self.out.isatty():
            self.line(text.plain)
            return
        self._before_output()
        self._console().print(text, soft_wrap=True)

    def hint(self, text: str) -> None:
        """Print a message that is not part of the answer, on `err`."""
        self.err.write(printable(text) + "\n")

    def complain(self, text: str) -> None:
        """Print an error message on `err`. It may have several lines."""
        self.err.write("\n".join(printable(line) for line in text.split("\n")) + "\n")

    def fields(self, row: Json) -> None:
        """Print one object of the API. For people, each field is a line."""
        if self.is_structured:
            self.value(row)
            return
        if self.form == "csv":
            self.line(formats.to_csv(list(row), [[_cell(name, value) for name, value in row.items()]]))
            return
        width = max(map(len, row), default=0)
        self._before_output()
        console = self._console()
        for name, value in row.items():
            line = Text.assemble((name.ljust(width), "bold"), "  ", _painted(name, shown(name, value)))
            console.print(line, soft_wrap=True)

    def table(self, columns: Columns, rows: Sequence[Json]) -> None:
        """Print `rows` with the headings of `columns`.

        On a terminal, the output is a table with a line under the headings. In the format CSV, the output is CSV. In
        all other cases, the output is plain text in columns.
        """
        names = columns.shown if self.form == "table" else columns.shown + columns.more
        if self.form == "csv":
            self.line(formats.to_csv(names, ([_cell(name, columns.of(row, name)) for name in names] for row in rows)))
            return
        cells = [[shown(name, columns.of(row, name)) for name in names] for row in rows]
        if self.out.isatty():
            self._framed(names, cells)
            return
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        for line in [names, *cells]:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def _framed(self, names: Sequence[str], cells: list[list[str]]) -> None:
        self._before_output()
        console = self._console()
        columns = zip(names, *cells, strict=True)
        widths = [max(map(cell_len, column)) if self.form == "wide" else _least_width(*column) for column in columns]
        ends = list(accumulate(widths, lambda end, width: end + _GAP + width))
        # The table may be wider than the terminal, because an id must not be cut.
        console.width = max(console.width, ends[-1] if self.form == "wide" else widths[0])
        fitting = [name for name, end in zip(names, ends, strict=True) if end <= console.width]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
        for name in fitting:
            table.add_column(name, no_wrap=self.form == "wide" or name not in FREE_TEXT, overflow="fold")
        for row in cells:
            table.add_row(*map(_painted, fitting, row))
        console.print(table)
        if left_out := names[len(fitting) :]:
            left = ", ".join(left_out)
            self.hint(f"The terminal is too narrow for these columns: {left}. `-o wide` shows them.")

    def _before_output(self) -> None:
        if self._clears:
            self._clears = False
            self.out.write(_TOP_LEFT)

    def _console(self) -> Console:
        return _Output(file=self.out, highlight=False)


def _cell(name: str, value: Any) -> str:
    return "" if value is None else _readable(name, value)


def _least_width(name: str, *cells: str) -> int:
    if name not in FREE_TEXT:
        return max(map(cell_len, (name, *cells)))
    # An id inside a text must not be cut.
    longest_word = max(cell_len(word) for text in (name, *cells) for word in (text.split() or [""]))
    widest = max(map(cell_len, (name, *cells)))
    return min(widest, max(NARROWEST_FREE_TEXT, min(longest_word, WIDEST_WORD)))


def style_of(text: str) -> str:
    """Return the style of a text. The text may begin with the name of a state."""
    return _COLOURS.get(text.partition(",")[0].partition(":")[0], "")


def _painted(name: str, text: str) -> Text:
    if name not in _COLOURED:
        return Text(text)
    return Text(text, _COLOURS.get(text.partition(",")[0], "red" if name in ("status", "code") else ""))


@contextmanager
def progress(device_count: int) -> Iterator[tuple[float, Callable[[Json], None]]]:
    """Show the progress of a command while this context is open, if stderr is a terminal.

    The context yields a time in seconds and a function. Read the command again after this time, and call the function
    with each reading.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _AT_LENGTH, _nobody
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=device_count)

        def watch(command: Json) -> None:
            done = device_count - open_deliveries(command)
            bar.update(task, completed=done, description=_so_far(command["counts"]))

        yield _IN_STEP, watch


def _so_far(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in _SHOWN_WHILE_WAITING if counts[state])


def _nobody(command: Json) -> None:
    """Do nothing."""


def open_deliveries(command: Json) -> int:
    """Return the number of open deliveries of a command."""
    return int(command["counts"]["pending"]) + int(command["counts"]["received"])


def printable(text: str) -> str:
    """Return `text` with each control character replaced.

    Phones choose names and messages. Control characters in them could change the terminal of an admin.
    """
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def shown(name: str, value: Any) -> str:
    """Return the value of the field `name` for people. Times have no fractions of seconds."""
    return _readable(name, value) or NOTHING


def _readable(name: str, value: Any) -> str:
    text = _text(value)
    return printable(_FRACTION.sub("Z", text) if re.search(r"(^|_)at$", name) else text)


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ("; " if any(isinstance(one, dict) for one in value) else ", ").join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={_readable(name, inner)}" for name, inner in value.items() if inner is not None)
    return str(value)
