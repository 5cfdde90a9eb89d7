"""Chaos runs: a run causes a fault under load, and then compares four records of what happened (ledgers)."""
