"""The ASGI application `nexmdm.asgi:application`, for any ASGI server."""

import os

import django
from django.utils.module_loading import import_string

from nexmdm.common.asgi_types import App

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
django.setup(set_prefix=False)

# Imported by name, because this module needs configured settings.
application: App = import_string("nexmdm.http.application.build")()
