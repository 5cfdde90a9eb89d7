"""manage.py licenses: the installed packages, with version and license."""

from importlib.metadata import Distribution, PackageMetadata, distributions
from typing import Any, Final

from django.core.management.base import BaseCommand

_CLASSIFIER: Final = "License :: "
_LONGEST: Final = 60
"""A longer text is the license's own text instead of its name."""


class Command(BaseCommand):
    """Print a line for each package, by name."""

    help = "List the installed packages with their versions and licences, from their own metadata."
    requires_system_checks = ()

    def handle(self, *_: object, **__: Any) -> None:
        """Print the packages, their versions and licences."""
        found = sorted({(one.name.lower(), one.version, _licence(one)) for one in distributions()})
        name_width, version_width = (max(len(row[column]) for row in found) for column in (0, 1))
        for name, version, licence in found:
            self.stdout.write(f"{name:<{name_width}}  {version:<{version_width}}  {licence}")


def _licence(package: Distribution) -> str:
    """Return the package's SPDX expression if it has one, else its license in an older form."""
    metadata = package.metadata
    if expression := _first(metadata, "License-Expression"):
        return expression
    classified = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith(_CLASSIFIER)]
    if classified:
        return ", ".join(classified)
    text = _first(metadata, "License")
    return text if text and len(text) <= _LONGEST and "\n" not in text else "not declared"


def _first(metadata: PackageMetadata, field: str) -> str:
    return next(iter(metadata.get_all(field, [])), "")
