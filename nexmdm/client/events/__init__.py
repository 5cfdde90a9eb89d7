"""Events in the client: read the event feed, print events, and receive webhooks on this machine."""
