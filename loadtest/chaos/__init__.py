"""Chaos runs: faults under load, and four records of what happened (ledgers), which must agree after the run."""
