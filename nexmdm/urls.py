"""Every path there is. They are tried in order, so what phones call comes first."""

from django.urls import path

from nexmdm import site_errors
from nexmdm.admin_site import site
from nexmdm.api import api

urlpatterns = [
    path("", api.urls),
    path("django-admin/", site.urls),
]

# What the admin site answers to errors; the API has its own table.
handler400 = site_errors.bad_request
handler403 = site_errors.forbidden
handler404 = site_errors.not_found
handler500 = site_errors.failed
