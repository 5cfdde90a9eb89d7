"""The admin site: staff look at devices, commands, deliveries and attempts. Nothing can be changed here.

A site of our own, with our models only: on Django's default one a superuser could still write accounts.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.views.decorators.http import require_safe

from commands.admin.commands import BusyDeviceAdmin, CommandAdmin
from commands.admin.deliveries import AttemptAdmin, DeliveryAdmin, ReportAdmin
from commands.models import Attempt, Command, Delivery, Report
from devices.models import Device
from nexmdm.admin_site import dashboard, logins
from nexmdm.admin_site.audit import AuditEntryAdmin
from nexmdm.admin_site.dispatchers import DispatcherSeenAdmin
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
        guarded = super().admin_view(view, cacheable)
        return guarded if view in (self.logout, self.password_change) else require_safe(guarded)

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Return the first page: the charts, and the lists to browse."""
        return super().index(request, {"charts": dashboard.charts()} | (extra_context or {}))

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Let staff in, and note each attempt. (How many there may be: nexmdm/http/admin_site_handler.py.)"""
        response = super().login(request, extra_context)
        if request.method == "POST":
            good = response.status_code == HTTPStatus.FOUND
            logins.note(good=good, address=request.META["REMOTE_ADDR"], username=request.user.get_username())
        return response


site = NexmdmAdminSite(name="nexmdm-admin")
site.register(Device, BusyDeviceAdmin)
site.register(Command, CommandAdmin)
site.register(Delivery, DeliveryAdmin)
site.register(Attempt, AttemptAdmin)
site.register(Report, ReportAdmin)
site.register(AuditEntry, AuditEntryAdmin)
site.register(DispatcherSeen, DispatcherSeenAdmin)
