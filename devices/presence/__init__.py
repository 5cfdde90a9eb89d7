"""Presence: which devices are and were online, and the times in which the service itself was away."""
