"""Commands to phones: the catalogue of actions, issue, pushes, reports, retention, and the API endpoints."""
