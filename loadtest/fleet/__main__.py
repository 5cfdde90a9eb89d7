"""Seed a large fleet into the database: `python -m loadtest.fleet`."""

import os
import sys

import django
from django.utils.module_loading import import_string

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
    django.setup(set_prefix=False)
    # This import must come after django.setup(), because the module uses models.
    sys.exit(import_string("loadtest.fleet.seeding.main")())
