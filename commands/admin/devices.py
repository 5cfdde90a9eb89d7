"""The admin page of a device, with its timeline and its presence history."""

from typing import Any, ClassVar

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString

from commands.admin import device_timeline, presence_strip
from commands.models import Attempt, Delivery, Report
from devices.admin import DeviceAdmin
from devices.models import Device
from nexmdm.common.read_only_admin.columns import link_to_list
from nexmdm.models import AuditEntry


class BusyDeviceAdmin(DeviceAdmin):
    """The admin page of a device, with its timeline and its presence history."""

    change_form_template = "commands/device.html"
    fieldsets: ClassVar = [
        *DeviceAdmin.fieldsets[:-1],
        ("All about this device", {"fields": ["all_deliveries", "all_attempts", "all_reports", "audit_entries"]}),
        *DeviceAdmin.fieldsets[-1:],
    ]

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the device with its timeline and the chart of its presence in the last week. Return None if the device
        does not exist.
        """
        device = super().get_object(request, object_id, from_field)
        if device is not None:
            device.events = device_timeline.newest_first(device)
            device.strip = presence_strip.of_last_week(device.pk)
        return device

    @admin.display(description="deliveries")
    def all_deliveries(self, device: Device) -> SafeString:
        """Return a link to the device's deliveries."""
        return link_to_list(Delivery, "All deliveries to this device", device__id__exact=device.pk)

    @admin.display(description="attempts")
    def all_attempts(self, device: Device) -> SafeString:
        """Return a link to the pushes to the device."""
        return link_to_list(Attempt, "All pushes to this device", q=device.pk)

    @admin.display(description="reports")
    def all_reports(self, device: Device) -> SafeString:
        """Return a link to the device's reports."""
        return link_to_list(Report, "All reports of this device", q=device.pk)

    @admin.display(description="audit")
    def audit_entries(self, device: Device) -> SafeString:
        """Return a link to the signed requests about the device."""
        text = "Signed requests about this device. Not listed: tag changes, and refused commands to several devices"
        return link_to_list(AuditEntry, text, q=device.pk)
