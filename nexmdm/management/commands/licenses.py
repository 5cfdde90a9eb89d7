"""The command `manage.py licenses`, which lists the installed Python packages with their licences."""

from importlib.metadata import Distribution, PackageMetadata, distributions
from typing import Any, Final

from django.core.management.base import BaseCommand

_CLASSIFIER: Final = "License :: "
_LONGEST: Final = 60
"""The longest name of a licence, in characters. A longer field contains the text of the licence."""


class Command(BaseCommand):
    """Print one line for each installed package, sorted by name."""

    help = "List the installed packages with their versions and licences, from their own metadata."
    requires_system_checks = ()

    def handle(self, *_: object, **__: Any) -> None:
        """Print the name, version and licence of each package."""
        found = sorted({(one.name.lower(), one.version, _licence(one)) for one in distributions()})
        name_width, version_width = (max(len(row[column]) for row in found) for column in (0, 1))
        for name, version, licence in found:
            self.stdout.write(f"{name:<{name_width}}  {version:<{version_width}}  {licence}")


def _licence(package: Distribution) -> str:
    """Return the licence of a package, or "not declared".

    The fields of the metadata are tried in this order: License-Expression, Classifier, License.
    """
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
