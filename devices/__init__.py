"""The Django app of devices: enrollment, credentials, heartbeats, presence, tags, and API endpoints."""
