"""The pages of the admin site as plain text."""

import re


def plain(page: str) -> str:
    """Return a page without its mark-up."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).strip()
