"""Events in the admin's client: reading the feed, printing events, and receiving webhooks on this machine."""
