"""Devices: registration, heartbeats, credentials, the admin API."""
