"""Read the documents: their pages, code, links, anchors, and the commands that they show."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.processes import ROOT

PAGES: Final = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for folder in ("docs", "loadtest", "nexmdm", "tests") for page in (ROOT / folder).rglob("*.md")),
    ]
)
BLOCK: Final = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SPAN: Final = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
_LINK: Final = re.compile(r"\]\(([^()\s]+)\)")


class Command(NamedTuple):
    """A command as a document shows it: its name, and the words after it up to the end of the shell command."""

    name: str
    words: list[str]


def name_of(path: Path) -> str:
    """Return a path relative to the repository."""
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return BLOCK.sub("", page.read_text())


def code(page: Path) -> str:
    """Return the code on a page, with each block or span as a paragraph. Return any other file whole."""
    text = page.read_text()
    if page.suffix != ".md":
        return text
    spans = [" ".join(span.split()) for span in SPAN.findall(prose(page))]
    return "\n".join([found for _, language, found in BLOCK.findall(text) if language != "diff"] + spans)


def links(page: Path) -> set[str]:
    """Return the targets of a page's links and pictures, except those on other sites."""
    text = SPAN.sub("", prose(page))
    return {link for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link)}


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{slug}-{count}" if (count := found.count(slug)) else slug)
    return set(found)


def commands(text: str, program: str) -> Iterator[Command]:
    r"""Yield each command of a program, given as a regular expression such as `manage\.py`."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for name, rest in re.findall(rf"{program}[\"']?,? [\"']?([a-z][a-z_.-]*)([^\n|;&()<>]*)", joined):
        words = rest.partition(" #")[0].split()
        yield Command(name.rstrip("."), [word.strip("\"',[]") for word in words])


def options(command: Command) -> set[str]:
    """Return the long options among a command's words, without their values."""
    return {found[0] for word in command.words if (found := re.match(r"--[a-z][a-z0-9-]*", word))}
