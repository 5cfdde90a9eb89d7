"""Chaos runs. A run causes a fault under load, and compares four records of what happened (ledgers)."""
