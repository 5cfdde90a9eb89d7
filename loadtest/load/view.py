"""The view of a run in the terminal: its state while it runs, and its result at the end."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.load import targets
from loadtest.load.figures import Histogram
from loadtest.load.runner import Run
from loadtest.load.targets import Target, milliseconds

RECENT_SECONDS: Final = 10
_PLAIN_EVERY_SECONDS: Final = 30


@contextmanager
def gathering(console: Console, count: int) -> Iterator[Callable[[], None]]:
    """Show the progress of registrations. Yield a function to call after each registration."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console.print(f"Registering {count:,} phones …", highlight=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("registered", total=count)
        yield lambda: bar.advance(task)


@contextmanager
def shown(console: Console, run: Run) -> Iterator[Callable[[], None]]:
    """Show the state of a run. Yield a function that updates the view; the caller may call it at any time.

    If the output is not a terminal, the function prints a line every 30 s.
    """
    if not console.is_terminal:
        yield _Plain(console, run)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(picture(run), refresh=True)


class _Plain:
    def __init__(self, console: Console, run: Run) -> None:
        self._console = console
        self._run = run
        self._next_at = time.monotonic() + _PLAIN_EVERY_SECONDS

    def __call__(self) -> None:
        if time.monotonic() < self._next_at:
            return
        self._next_at += _PLAIN_EVERY_SECONDS
        whole = self._run.figures.latencies("heartbeat")
        words = (
            _clock(self._run.elapsed_seconds),
            f"{whole.count:,} heartbeats",
            f"p95 {milliseconds(whole.percentile(95))}",
            f"{self._run.figures.errors().total():,} errors",
            f"{self._run.ledger.open} commands open, {self._run.ledger.done} done",
        )
        self._console.print(" · ".join(words), highlight=False)


def picture(run: Run) -> Panel:
    """Return the state of a run as a panel for the terminal."""
    now = run.elapsed_seconds
    since = run.measured_since if now > run.measured_since else 0
    recent = max(0.0, int(now) - RECENT_SECONDS)
    rows = Table.grid(padding=(0, 3))
    rows.add_column(style="dim", min_width=13)
    rows.add_column(justify="right", min_width=12)
    rows.add_column(justify="right", min_width=12)
    rows.add_row("", Text(f"last {RECENT_SECONDS} s", style="dim"), Text("so far", style="dim"))
    rows.add_row("heartbeats/s", _rate(run, recent, int(now)), _rate(run, since, int(now)))
    _add_latencies(
        rows, run.figures.latencies("heartbeat", since=recent), run.figures.latencies("heartbeat", since=since)
    )
    rows.add_row("errors", _count(run, recent), _count(run, since))
    rows.add_row("commands", f"{run.ledger.open:,} open", f"{run.ledger.done:,} done")
    return Panel(
        Group(_progress(run), Text(), rows), title=_title(run), title_align="left", padding=(1, 2), expand=False
    )


def _title(run: Run) -> str:
    load = run.load
    return f"[bold]{load.devices:,} devices[/], a heartbeat every {load.interval_seconds:g} s · {load.url}"


def _progress(run: Run) -> Table:
    elapsed, whole = run.elapsed_seconds, run.load.seconds
    line = Table.grid(padding=(0, 2))
    phase = "ramp" if elapsed < run.load.ramp_seconds else "measuring" if elapsed < whole else "finishing"
    bar = ProgressBar(total=whole, completed=elapsed, width=30)
    line.add_row(f"{_clock(elapsed)} of {_clock(whole)}", bar, Text(phase, style="dim"))
    return line


def _rate(run: Run, since: float, until: float) -> str:
    return f"{run.figures.answered(since, until) / (until - since):,.1f}" if until > since else "–"


def _add_latencies(rows: Table, recent: Histogram, whole: Histogram) -> None:
    for percent in (50, 95, 99):
        rows.add_row(f"p{percent}", milliseconds(recent.percentile(percent)), milliseconds(whole.percentile(percent)))


def _count(run: Run, since: float) -> Text:
    errors = run.figures.errors(since).total()
    return Text(f"{errors:,}", style="bold red" if errors else "")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def print_verdict(console: Console, run: Run, judged: list[Target]) -> None:
    """Print all targets, the number of each error, and the generator's delay if it was long."""
    print_targets(console, judged)
    console.print(_summary(run), highlight=False)
    for error, count in run.figures.errors().most_common():
        console.print(f"  {count:,} × {error}", highlight=False, markup=False)
    if not run.load.journal and run.load.commands_per_minute:
        console.print("Dispatch was not measured: the server of --url does not push to the fake FCM.", style="dim")
    if late := targets.lateness(run):
        console.print(Text(late, style="yellow"))


def print_targets(console: Console, judged: Iterable[Target]) -> None:
    """Print each target with its limit, its figure, and whether it was met."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("target", "limit", "figure", ""):
        table.add_column(name, justify="left" if name == "target" else "right")
    for one in judged:
        word = Text("pass", style="green") if one.held else Text("miss", style="bold red")
        table.add_row(one.name, one.limit, one.figure, word)
    console.print(table)


def _summary(run: Run) -> str:
    heartbeats = run.figures.latencies("heartbeat", since=run.measured_since)
    rate = _rate(run, run.measured_since, run.load.seconds)
    core = sum(run.cpu_seconds.values()) / max(run.load.seconds, 1)
    return (
        f"{heartbeats.count:,} heartbeats, {rate}/s; {run.ledger.done:,} commands done, {run.ledger.open:,} open; "
        f"generator: {run.load.processes} process{'es' if run.load.processes > 1 else ''}, {core:.2f} of a core."
    )
