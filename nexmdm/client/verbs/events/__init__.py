"""The verbs `events` and `webhook`."""
