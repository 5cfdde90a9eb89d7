"""Limits on expensive work, so that other work does not wait for it: gates, threads for hashing, shared look-ups."""
