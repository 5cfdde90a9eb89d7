"""Every path there is. They are tried in order, so what phones call comes first."""

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views import defaults

from nexmdm import problems
from nexmdm.admin_site import site
from nexmdm.api import api

urlpatterns = [
    path("", api.urls),
    path("django-admin/", site.urls),
]


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer an unknown path of the classic stack: a page for people in the admin site, a problem elsewhere."""
    if request.path.startswith("/django-admin/"):
        return defaults.page_not_found(request, exception)
    return problems.NOT_FOUND.response()
