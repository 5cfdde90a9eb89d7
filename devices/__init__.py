"""Devices: enrollment, credentials, heartbeats, presence, tags; what phones and admins call about them."""
