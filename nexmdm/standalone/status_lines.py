"""Lines that stay at the bottom of a terminal while other output scrolls above them."""

import os
import time
from collections.abc import Callable
from typing import Final, TextIO

LEAST_ROWS: Final = 10
REFRESH_SECONDS: Final = 5.0

_SAVE: Final = "\x1b7"
_RESTORE: Final = "\x1b8"
_CLEAR_LINE: Final = "\x1b[2K"
_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"
_WHOLE_SCREEN: Final = "\x1b[r"


class StatusLines:
    """A horizontal rule and below it the lines from `lines()`, on the last rows of the terminal `out`.

    The escape code DECSTBM limits scrolling to the rows above the rule. So the output of other processes does not
    overwrite the lines. If `out` is not a suitable terminal, nothing is written.
    """

    def __init__(self, out: TextIO, lines: Callable[[], list[str]]) -> None:
        self._out = out
        self._lines = lines
        self._shown_at = float("-inf")
        self._size = os.terminal_size((0, 0))
        self._rows = 0

    def refresh(self) -> None:
        """Write the lines if REFRESH_SECONDS have passed, or if the size of the terminal has changed."""
        size = _size_of(self._out)
        if size is None:
            self.close()
            return
        if size == self._size and time.monotonic() - self._shown_at < REFRESH_SECONDS:
            return
        lines = self._lines()
        if size != self._size or len(lines) + 1 != self._rows:
            self._reserve(size, len(lines) + 1)
        self._show(lines)
        self._shown_at = time.monotonic()

    def close(self) -> None:
        """Delete the lines, and let the whole terminal scroll again."""
        if not self._rows:
            return
        below = f"\x1b[{self._size.lines - self._rows + 1};1H\x1b[J"
        self._write(_WHOLE_SCREEN + below)
        self._rows, self._size = 0, os.terminal_size((0, 0))

    def _reserve(self, size: os.terminal_size, rows: int) -> None:
        self._size, self._rows = size, rows
        scrolled = "\n" * rows + f"\x1b[{rows}A"
        self._write(
            f"{_WHOLE_SCREEN}\x1b[{size.lines};1H{scrolled}\x1b[1;{size.lines - rows}r\x1b[{size.lines - rows};1H"
        )

    def _show(self, lines: list[str]) -> None:
        first = self._size.lines - self._rows + 1
        shown = [_DIM + "─" * self._size.columns + _PLAIN, *(line[: self._size.columns] for line in lines)]
        rows = "".join(f"\x1b[{first + number};1H{_CLEAR_LINE}{line}" for number, line in enumerate(shown))
        self._write(_SAVE + rows + _RESTORE)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _size_of(out: TextIO) -> os.terminal_size | None:
    """Return the size of the terminal `out`.

    Return None if `out` is not a terminal or TERM is `dumb`. Return None if the terminal has fewer than LEAST_ROWS
    rows.
    """
    if not out.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return None
    size = os.get_terminal_size(out.fileno())
    return size if size.lines >= LEAST_ROWS else None
