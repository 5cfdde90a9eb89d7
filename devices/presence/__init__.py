"""Presence: which devices are online, the history of it, and the times in which the service itself was away."""
