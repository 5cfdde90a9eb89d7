"""The ASGI application, for any ASGI server: `nexmdm.asgi:application`."""

import os

import django
from django.utils.module_loading import import_string

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
django.setup(set_prefix=False)

# By name: what it imports needs the settings in force.
application = import_string("nexmdm.http.application.build")()
