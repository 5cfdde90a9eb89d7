"""Webhooks: the events of the feed are sent to other systems as signed requests, in order and at least once."""
