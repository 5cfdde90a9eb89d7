"""The app for devices: enrollment, credentials, heartbeats, presence and tags, and the API endpoints for them."""
