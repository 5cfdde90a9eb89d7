"""All paths. Django tries them in order, so the paths that phones call come first."""

from django.urls import path

from nexmdm.admin_site import error_pages
from nexmdm.admin_site.site import site
from nexmdm.api.application import api

urlpatterns = [
    path("", api.urls),
    path("django-admin/", site.urls),
]

# The admin site's answers to errors; the API has its own table.
handler400 = error_pages.bad_request
handler403 = error_pages.forbidden
handler404 = error_pages.not_found
handler500 = error_pages.failed
