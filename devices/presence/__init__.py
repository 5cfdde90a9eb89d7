"""Presence: which devices are online, the presence history, and the service gaps."""
