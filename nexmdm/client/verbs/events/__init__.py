"""The verbs for events and webhooks."""
