"""The admin site, on which staff read devices, commands and all other tables.

It is not the default site of Django, because on that site a superuser could change accounts.
"""

from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.views.decorators.http import require_safe

from commands.admin.commands import CommandAdmin
from commands.admin.deliveries import AttemptAdmin, DeliveryAdmin, ReportAdmin
from commands.admin.devices import BusyDeviceAdmin
from commands.models import Attempt, Command, Delivery, Report
from devices.admin import EnrollmentTokenAdmin
from devices.models import Device, EnrollmentToken
from nexmdm.admin_site import dashboard, logins, push_health, search
from nexmdm.admin_site.audit import AuditEntryAdmin
from nexmdm.admin_site.dispatchers import DispatcherSeenAdmin
from nexmdm.admin_site.webhooks import WebhookAdmin, WebhookAttemptAdmin
from nexmdm.common.read_only_admin import page_time
from nexmdm.common.read_only_admin.columns import address_of
from nexmdm.models import AuditEntry, DispatcherSeen, Webhook, WebhookAttempt

if TYPE_CHECKING:
    from django.contrib.admin.sites import _ViewType


class NexmdmAdminSite(AdminSite):
    """The read-only admin site. Only three views write to the database: login, logout and password change."""

    site_title = site_header = "NexMDM"
    index_title = "The fleet at a glance"
    site_url = None
    enable_nav_sidebar = False
    index_template = "nexmdm/index.html"

    def admin_view(self, view: "_ViewType", cacheable: bool = False) -> "_ViewType":
        """Wrap a view so that it answers 405 to methods other than GET and HEAD.

        The logout and the change of a password accept POST. The login also accepts POST, because Django does not call
        this method for the login.
        """
        if view in (self.logout, self.password_change):
            return super().admin_view(view, cacheable)

        @wraps(view)
        def begun(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            page_time.begin()
            return view(request, *args, **kwargs)

        return require_safe(super().admin_view(cast("_ViewType", begun), cacheable))

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Return the home page."""
        return super().index(request, dashboard.home() | (extra_context or {}))

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Return the paths of the site."""
        return [
            path("search/", self.admin_view(self.search), name="search"),
            path("push-health/", self.admin_view(self.push_health), name="push-health"),
            *super().get_urls(),
        ]

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Return the lists of the site by app. The page of push health is in the app `nexmdm`."""
        found = super().get_app_list(request, app_label)
        for app in found:
            if app["app_label"] == "nexmdm":
                entry = {"name": "Push health", "object_name": "PushHealth", "admin_url": reverse("admin:push-health")}
                app["models"].append({**entry, "add_url": None, "view_only": True})
        return found

    def push_health(self, request: HttpRequest) -> HttpResponse:
        """Return the page of push health. If its query is invalid, redirect to the page without a query."""
        try:
            chosen = push_health.page(request.GET.dict())
        except push_health.UnknownChoice:
            return HttpResponseRedirect(request.path)
        context = {**self.each_context(request), "title": "Push health", **chosen}
        return TemplateResponse(request, "nexmdm/push_health.html", context)

    def search(self, request: HttpRequest) -> HttpResponse:
        """Search for the text in the parameter `q`.

        If exactly one row is found, redirect to its page. In all other cases, return the result page.
        """
        found = search.find(request.GET.get("q", ""))
        if found.only is not None:
            return HttpResponseRedirect(address_of(type(found.only), "change", found.only.pk))
        context = {**self.each_context(request), "title": "Search", "found": found, "latest": search.LATEST}
        return TemplateResponse(request, "nexmdm/search.html", context)

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Log a person in, and log the attempt.

        nexmdm/http/admin_site_handler.py limits the attempts.
        """
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
site.register(Webhook, WebhookAdmin)
site.register(WebhookAttempt, WebhookAttemptAdmin)
