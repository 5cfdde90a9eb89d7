"""Webhooks: the events of the feed, sent to other systems as signed requests, in order and at least once."""
