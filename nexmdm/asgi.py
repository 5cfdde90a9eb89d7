"""The ASGI application, for any ASGI server: `nexmdm.asgi:application`."""

import os

import django
from django.utils.module_loading import import_string

from nexmdm.common.asgi_types import App

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
django.setup(set_prefix=False)

# Import by name: the module needs the settings in force.
application: App = import_string("nexmdm.http.application.build")()
