"""The type of arguments that list event types."""

from argparse import ArgumentTypeError
from typing import Final

import rich_click as click
from click.shell_completion import CompletionItem

from nexmdm.client.arguments import Value
from nexmdm.client.events import lines


def event_types(text: str) -> str:
    """Return a comma-separated list of event types without spaces."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise ArgumentTypeError("must be types of events, such as command.finished or device.*")
    return ",".join(found)


class EventTypes(Value):
    """A list of event types. A shell completes it with the event types of this version."""

    def __init__(self) -> None:
        super().__init__("types", event_types)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the completions of the part after the last comma."""
        del ctx, param
        before, comma, start = incomplete.rpartition(",")
        groups = {f"{name.partition('.')[0]}.*": None for name in lines.TYPES}
        return [CompletionItem(f"{before}{comma}{one}") for one in (*groups, *lines.TYPES) if one.startswith(start)]


TYPES: Final = EventTypes()
