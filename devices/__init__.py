"""Devices: enrollment, credentials, heartbeats, presence, tags, and the endpoints for them."""
