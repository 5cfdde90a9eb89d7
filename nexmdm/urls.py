"""All paths of the server. Django tries the paths in this order, so the paths of the API come first."""

from django.urls import path

from nexmdm.admin_site import error_pages
from nexmdm.admin_site.site import site
from nexmdm.api.application import api

urlpatterns = [
    path("", api.urls),
    path("django-admin/", site.urls),
]

# For errors on the admin site. Errors of the API are in nexmdm/api/error_table.py.
handler400 = error_pages.bad_request
handler403 = error_pages.forbidden
handler404 = error_pages.not_found
handler500 = error_pages.failed
