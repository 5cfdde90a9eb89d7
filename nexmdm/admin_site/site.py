"""The admin site: staff look at devices, commands, deliveries and attempts. Nothing can be changed here.

A site of our own, with our models only: on Django's default one a superuser could still write accounts.
"""

from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.http import require_safe

from commands.admin.commands import CommandAdmin
from commands.admin.deliveries import AttemptAdmin, DeliveryAdmin, ReportAdmin
from commands.admin.devices import BusyDeviceAdmin
from commands.models import Attempt, Command, Delivery, Report
from devices.admin import EnrollmentTokenAdmin
from devices.models import Device, EnrollmentToken
from nexmdm.admin_site import dashboard, logins, search
from nexmdm.admin_site.audit import AuditEntryAdmin
from nexmdm.admin_site.dispatchers import DispatcherSeenAdmin
from nexmdm.common.read_only_admin import page_time
from nexmdm.common.read_only_admin.columns import address_of
from nexmdm.models import AuditEntry, DispatcherSeen

if TYPE_CHECKING:
    from django.contrib.admin.sites import _ViewType


class NexmdmAdminSite(AdminSite):
    """Read-only, whatever a model's own page would allow: only login, logout and the change of one's password write."""

    site_title = site_header = "NexMDM"
    index_title = "The fleet at a glance"
    site_url = None
    enable_nav_sidebar = False
    index_template = "nexmdm/index.html"

    def admin_view(self, view: "_ViewType", cacheable: bool = False) -> "_ViewType":
        """Guard a view; all but two answer 405 to anything but GET and HEAD. (The login is not wrapped by this.)"""
        if view in (self.logout, self.password_change):
            return super().admin_view(view, cacheable)

        @wraps(view)
        def begun(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            page_time.begin()
            return view(request, *args, **kwargs)

        return require_safe(super().admin_view(cast("_ViewType", begun), cacheable))

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Return the home page: what needs attention, the charts, and the lists to browse."""
        return super().index(request, dashboard.home() | (extra_context or {}))

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Return the pages of the site."""
        return [path("search/", self.admin_view(self.search), name="search"), *super().get_urls()]

    def search(self, request: HttpRequest) -> HttpResponse:
        """Go to the row that the text `q` stands for; if it stands for several, or none, return what was found."""
        found = search.find(request.GET.get("q", ""))
        if found.only is not None:
            return HttpResponseRedirect(address_of(type(found.only), "change", found.only.pk))
        context = {**self.each_context(request), "title": "Search", "found": found, "latest": search.LATEST}
        return TemplateResponse(request, "nexmdm/search.html", context)

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Let staff in, and note each attempt. (How many there may be: nexmdm/http/admin_site_handler.py.)"""
        response = super().login(request, extra_context)
        if request.method == "POST":
            good = response.status_code == HTTPStatus.FOUND
            logins.note(good=good, address=request.META["REMOTE_ADDR"], username=request.user.get_username())
        return response


site = NexmdmAdminSite(name="nexmdm-admin")
site.register(Device, BusyDeviceAdmin)
site.register(EnrollmentToken, EnrollmentTokenAdmin)
site.register(Command, CommandAdmin)
site.register(Delivery, DeliveryAdmin)
site.register(Attempt, AttemptAdmin)
site.register(Report, ReportAdmin)
site.register(AuditEntry, AuditEntryAdmin)
site.register(DispatcherSeen, DispatcherSeenAdmin)
